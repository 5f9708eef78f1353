"""xend's envelope: a save file's or relocation's first bytes, and which image follows them.

    16  "LinuxGuestRecord"
     4  length of the configuration, signed, big-endian
     n  the configuration, one s-expression
        a libxc image

Source: XendCheckpoint.py, Xen 3.0.3 - 4.4; the error texts are its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from xendpy.errors import StreamError, StreamTruncated, UnsupportedStream
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.stream import legacy, libxc, libxc_format, libxl
from xendpy.stream.legacy_head import FIRST_BYTES
from xendpy.stream.limits import DEFAULT_LIMITS, StreamLimits
from xendpy.stream.steps import Steps, take, tell

SIGNATURE = b"LinuxGuestRecord"
CONFIG_LENGTH = Struct(">i")
INVALID = "not a valid guest state file: "
LINE_END_BYTES = 2  # what may be left of a request in list form: "(receive)\r\n"


@dataclass(frozen=True, slots=True)
class Envelope:
    """The configuration as received; `offset` is where its first byte stood."""

    config_bytes: bytes
    offset: int


def read_envelope(max_config_bytes: int = DEFAULT_LIMITS.config_bytes) -> Steps[Envelope]:
    """Read signature, length and configuration; the image is next.

    Raises:
        StreamTruncated: the stream ends here (thrown into this generator by its driver);
            `reason` is xend's text.
        StreamError: another signature, or a length that cannot be.
    """
    start = yield from tell()
    signature = yield from _take(len(SIGNATURE), "signature read")
    blank = min(len(signature) - len(signature.lstrip(b"\r\n")), LINE_END_BYTES)
    if blank:
        signature = signature[blank:] + (yield from _take(blank, "signature read"))
    if signature != SIGNATURE:
        found = ascii(signature)[1:]
        raise StreamError(f"{INVALID}found {found}", offset=start + blank)
    at = yield from tell()
    (length,) = CONFIG_LENGTH.unpack((yield from _take(CONFIG_LENGTH.size, "config size read")))
    if not 0 < length <= max_config_bytes:
        reason = f"config size {length}, expected 1 to {max_config_bytes}"
        raise StreamError(INVALID + reason, offset=at)
    config = yield from _take(length, "config read")
    return Envelope(config, at + CONFIG_LENGTH.size)


def encode_envelope(config: DomainConfig) -> bytes:
    """Return the bytes that stand before the image of a guest with this configuration."""
    body = config.encode()
    return SIGNATURE + CONFIG_LENGTH.pack(len(body)) + body


def decode_body(guest_type: GuestType, limits: StreamLimits = DEFAULT_LIMITS) -> Steps[None]:
    """Decode the image behind an envelope, whichever format it has.

    A libxl stream has xl's header before it, whose configuration is passed over: that of the
    envelope was checked.
    """
    first = yield from take(FIRST_BYTES)
    if first == libxl.XL_MAGIC[:FIRST_BYTES]:
        header = yield from libxl.read_xl_header(limits, first)
        if not header.is_v2:
            raise UnsupportedStream("a legacy image behind a header of xl", format="xl")
        yield from libxl.decode(guest_type, limits)
    elif first == libxc_format.MARKER:
        yield from libxc.decode(first, guest_type, limits)
    else:
        yield from legacy.decode(first, guest_type, limits)


def _take(count: int, doing: str) -> Steps[bytes]:
    try:
        return (yield from take(count))
    except StreamTruncated as error:
        raise StreamTruncated(
            offset=error.offset or 0, wanted=error.wanted, got=error.got, reason=INVALID + doing
        ) from error
