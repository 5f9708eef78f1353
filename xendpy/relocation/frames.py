"""The xendpy-to-xendpy protocol: one framing, spoken after `(xendpy-receive ...)`.

A source that finds `xendpy-receive` in a peer's answer to `help` says, on the same connection,

    (xendpy-receive (version 1) (id HEX128) (host-id UUID) (features (a b ...)))

and is answered `(ready xendpy-receive (host-id UUID) (features (a ...)))`: those of its features
that the target takes. From there on both sides send frames: u32 type, u32 length, body; integers
little-endian. Nothing is read ahead, and a frame's length meets its limit before it is read.
Where both have the feature `xxh3`, digests go with each frame; see sums.py. With `zero` or `zstd`
a PACKED frame may stand where DATA would; see packing.py. With `streams` a STREAMS frame follows
RESERVED; see stripes.py.

    source                         target
    PLAN      JSON                 CHECKS    JSON: what preflight found
    CONFIG    guest's sxp          RESERVED  name, uuid and room are held; or REFUSED, text
    STREAMS   JSON: {"count": N}
    DATA ...  the image            FAILED    text: give up, the guest is yours
    IMAGE_END u64 image bytes      RECEIVED  whole and durable; never run before RELEASED
    RELEASED  it is yours          RUNNING   JSON: when it was unpaused
    FORGOTTEN my copy is gone      CLOSED    nobody needs to remember the migration
    ABORT     text: the guest stays with me

After a broken connection the source redials and asks with the ops of `resolve.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from typing import Any, Protocol

from xendpy.errors import HandshakeError, StreamTruncated
from xendpy.relocation.packing import Packer
from xendpy.relocation.sums import LONG_BYTES, SHORT, FrameSums

VERSION = 1
FRAME = Struct("<II")  # type, length
IMAGE_BYTES = Struct("<Q")
MAX_CONTROL = 256 << 10  # bytes of any frame but CONFIG and DATA
MAX_CONFIG = 4 << 20
MAX_DATA = 128 << 20


class FrameType(IntEnum):
    """Frame types; source's below 16, target's from 16 on."""

    PLAN = 1
    CONFIG = 2
    DATA = 3
    IMAGE_END = 4
    RELEASED = 5
    FORGOTTEN = 6
    ABORT = 7
    PACKED = 8
    STREAMS = 9
    # 10 - 15 reserved
    CHECKS = 16
    RESERVED = 17
    REFUSED = 18
    FAILED = 19
    RECEIVED = 20
    RUNNING = 21
    CLOSED = 22


class Wire(Protocol):
    """What framing needs of a channel; `sums` None = the peers have not agreed on digests."""

    sums: FrameSums | None

    def recv_exactly(self, count: int) -> bytes: ...

    def recv_into(self, views: Sequence[memoryview]) -> None: ...

    def send(self, views: Sequence[bytes | memoryview]) -> None: ...


def send_frame(wire: Wire, kind: FrameType, body: bytes = b"") -> None:
    """Send one frame."""
    _send(wire, kind, [body] if body else [])


def send_json(wire: Wire, kind: FrameType, value: object) -> None:
    """Send one frame whose body is JSON."""
    send_frame(wire, kind, json.dumps(value, separators=(",", ":")).encode())


def send_data(wire: Wire, pieces: Sequence[bytes | memoryview]) -> int:
    """Send one DATA frame gathered from `pieces`; return its body's length.

    Copies them only where digests were agreed on.
    """
    return _send(wire, FrameType.DATA, pieces)


def send_image(wire: Wire, pieces: Sequence[bytes | memoryview], packer: Packer | None) -> int:
    """Send a part of the image, packed if it can be; return how many image bytes it is."""
    body = packer.pack(pieces) if packer is not None else None
    if body is None:
        return send_data(wire, pieces)
    _send(wire, FrameType.PACKED, body)
    return sum(map(len, pieces))


def _send(wire: Wire, kind: FrameType, pieces: Sequence[bytes | memoryview]) -> int:
    length = sum(len(piece) for piece in pieces)
    header = FRAME.pack(kind, length)
    if wire.sums is not None:
        wire.send(wire.sums.seal(header, pieces if length else []))
    else:
        wire.send([header, *pieces])
    return length


def recv_header(wire: Wire) -> tuple[FrameType, int]:
    """Return the type and length of the next frame; its body is still on the wire.

    Raises:
        HandshakeError: a type that this version does not know, a length over its limit, or it
            was damaged on the way.
        StreamTruncated: the peer closed the connection.
    """
    try:
        header = wire.recv_exactly(FRAME.size)
    except StreamTruncated as error:
        if error.got:
            raise
        reason = "the peer closed the connection"
        raise StreamTruncated(
            offset=error.offset or 0, wanted=FRAME.size, got=0, reason=reason
        ) from None
    if wire.sums is not None:
        wire.sums.check_header(header, wire.recv_exactly(SHORT.size))
    kind, length = FRAME.unpack(header)
    try:
        frame = FrameType(kind)
    except ValueError:
        raise HandshakeError(f"frame type {kind:#x} is not known") from None
    limit = _LIMITS.get(frame, MAX_CONTROL)
    if length > limit:
        raise HandshakeError(f"{frame.name} frame of {length} bytes, at most {limit} are taken")
    return frame, length


_LIMITS = {FrameType.DATA: MAX_DATA, FrameType.PACKED: MAX_DATA, FrameType.CONFIG: MAX_CONFIG}


def recv_body(wire: Wire, length: int) -> bytes:
    """Return the body of the frame whose header was read last, no DATA.

    Raises:
        HandshakeError: it was damaged on the way.
    """
    if not length:
        return b""
    body = wire.recv_exactly(length)
    if wire.sums is not None:
        wire.sums.add(body)
        wire.sums.check_body(wire.recv_exactly(LONG_BYTES))
    return body


def recv_frame(
    wire: Wire, *expected: FrameType, limit: int | None = None
) -> tuple[FrameType, bytes]:
    """Return the next frame, which must be one of `expected` and no DATA.

    `limit`: bytes that its body may have, where that is less than its type allows.

    Raises:
        HandshakeError: it is another one, or longer.
    """
    frame, length = recv_header(wire)
    if frame not in expected or frame in (FrameType.DATA, FrameType.PACKED):
        names = ", ".join(kind.name for kind in expected)
        raise HandshakeError(f"{frame.name} frame where {names} was expected")
    if limit is not None and length > limit:
        raise HandshakeError(f"{frame.name} frame of {length} bytes, at most {limit} are taken")
    return frame, recv_body(wire, length)


def parse_json(body: bytes) -> dict[str, Any]:
    """Return a frame's JSON object.

    Raises:
        HandshakeError: it is none.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HandshakeError(f"a frame's JSON cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise HandshakeError("a frame's JSON is not an object")
    return value
