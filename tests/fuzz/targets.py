"""What is fuzzed: each parser of bytes that a stranger chooses, and seeds for it.

A target takes any bytes and returns; what the parser refuses with an error of ours is fine, any
other exception is a find. `Bounded` fails on steps that ask for more memory than the limits say.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import modern, streams
from tests.drive import drive_bytes
from tests.fuzz import seeds
from tests.relocation_tape import Tape
from xendpy import sxp
from xendpy.control import http
from xendpy.control.libvirt import wire, xml_config
from xendpy.control.libvirt.layouts import LAYOUTS, check_arguments
from xendpy.control.xmlrpc import decode_call
from xendpy.errors import DomainNotFound, HandshakeError, XendError
from xendpy.guest.domain import Domain, DomainConfig, GuestType
from xendpy.guest.pages import PAGE_SIZE, PageBatch, runs
from xendpy.hypervisor.base import Capabilities, Placement
from xendpy.migration.preflight import Facts, check_target
from xendpy.migration.reception import ReceiveLimits
from xendpy.relocation import frames, incoming, resolve, to_xendpy
from xendpy.relocation.frames import FrameType
from xendpy.relocation.handshake import Close, Handshake, Receive, parse_reply
from xendpy.relocation.image_source import ImageAborted, ImageSource
from xendpy.relocation.sums import FrameSums
from xendpy.stream import libxc, libxl
from xendpy.stream.xend import decode_body, read_envelope

CORPUS = Path(__file__).parent / "corpus"
BATCH_LIMIT = 4 << 20  # bytes of guest memory that may be asked for at once
_SCRATCH = memoryview(bytearray(1 << 20))
LIMITS = ReceiveLimits()


class Bounded:
    """A guest without memory of its own: pages land in scratch, as far as they fit."""

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        pfns = batch.with_data()
        assert len(pfns) * PAGE_SIZE <= BATCH_LIMIT, f"{len(pfns)} pages in one batch"
        lengths = (runs(pfns)[1] * PAGE_SIZE).tolist()
        return [self._view(length) for length in lengths]

    def apply(self, record: Any) -> None:
        assert record is not None

    def _view(self, length: int) -> memoryview:
        return _SCRATCH[:length] if length <= len(_SCRATCH) else memoryview(bytearray(length))


def fuzz_sxp(data: bytes) -> None:
    forms, _ = sxp.parse_forms(data.decode("latin-1"))
    for form in forms:
        again = sxp.parse_one(sxp.encode(form.value) + b"\n")
        assert again == form.value, f"{form.value!r} came back as {again!r}"


def fuzz_control(data: bytes) -> None:
    size = 1 + (data[0] if data else 0)
    handshake = Handshake(ops=("receive", incoming.OPERATION, resolve.OPERATION))
    for start in range(0, len(data), size):
        actions = handshake.feed(data[start : start + size])
        match actions[-1] if actions else None:
            case Close():  # nothing is fed after it
                break
            case Receive(value=value):
                with suppress(HandshakeError):
                    incoming.parse_opening(sxp.show(value))
                return
    parse_reply(data)


def fuzz_relocation(data: bytes) -> None:
    envelope, used = drive_bytes(read_envelope(LIMITS.max_config_bytes), data, Bounded())
    config = DomainConfig.parse(envelope.config_bytes, max_depth=LIMITS.max_sxp_depth)
    config.devices()
    drive_bytes(decode_body(config.guest_type, LIMITS.stream(config)), data[used:], Bounded())


def fuzz_legacy_pv(data: bytes) -> None:
    drive_bytes(decode_body(GuestType.PV), data, Bounded())


def fuzz_legacy_hvm(data: bytes) -> None:
    drive_bytes(decode_body(GuestType.HVM), data, Bounded())


def fuzz_libxc(data: bytes) -> None:
    drive_bytes(libxc.decode(), data, Bounded())


def fuzz_libxl(data: bytes) -> None:
    if data[:1] == b"X":
        _, used = drive_bytes(libxl.read_xl_header(), data, Bounded())
        data = data[used:]
    drive_bytes(libxl.decode(), data, Bounded())


class _Host:
    # As much of a driver as preflight asks for; nothing of the host's own disks is looked at.
    name = "store"

    def find(self, key: str) -> Domain:
        raise DomainNotFound(key)

    def capabilities(self) -> Capabilities:
        return _CAPABILITIES

    def place(self, config: DomainConfig) -> Placement:
        return Placement()


_CAPABILITIES = Capabilities(
    guest_types=frozenset(GuestType),
    live_save=frozenset(),
    runs_guests=False,
    free_memory_bytes=1 << 34,
    total_memory_bytes=1 << 34,
)


def fuzz_frames(data: bytes) -> None:
    """Our own protocol, as a target hears it; the first byte says whether with digests."""
    tape = Tape(data[1:])
    if data[:1] == b"\x01":
        tape.sums = FrameSums(b"a\n", b"b\n")
    plan = frames.parse_json(frames.recv_frame(tape, FrameType.PLAN)[1])
    _, raw = frames.recv_frame(tape, FrameType.CONFIG, limit=LIMITS.max_config_bytes)
    config = DomainConfig.parse(raw)
    facts = Facts.parse(plan.get("facts"))
    check_target(config, facts, _Host(), devices=False)  # type: ignore[arg-type]  # see _Host
    source = ImageSource(tape)
    with suppress(ImageAborted):
        source.recv_rest(1 << 20)
        source.finish()


class _Peer(Tape):
    """A target that has said everything already."""

    peer = "a peer"

    @contextmanager
    def deadline(self, _seconds: float) -> Iterator[None]:
        yield


def fuzz_answers(data: bytes) -> None:
    """Our own protocol, as a source hears it."""
    peer = _Peer(data)
    _, body = frames.recv_frame(peer, FrameType.CHECKS)
    for check in to_xendpy.parse_checks(body):
        check.to_json()
    frames.recv_frame(peer, FrameType.RESERVED, FrameType.REFUSED)
    to_xendpy._expect(peer, FrameType.RECEIVED, 1)  # type: ignore[arg-type]  # no socket behind it
    report = to_xendpy._expect(peer, FrameType.RUNNING, 1)  # type: ignore[arg-type]  # the same
    assert math.isfinite(to_xendpy.resume_seconds(report))


def fuzz_xmlrpc(data: bytes) -> None:
    decode_call(data)


_LOOP = asyncio.new_event_loop()


def _at_once(
    data: bytes, work: Callable[[asyncio.StreamReader], Coroutine[Any, Any, None]]
) -> None:
    """Let `work` read bytes that are all there, and then the end."""

    async def run() -> None:
        reader = asyncio.StreamReader(limit=http.MAX_LINE)
        reader.feed_data(data)
        reader.feed_eof()
        await work(reader)

    _LOOP.run_until_complete(run())


class _Writer:
    """As much of a StreamWriter as an answer needs."""

    def write(self, data: bytes) -> None:
        assert data.startswith(b"HTTP/1.1 ")

    def writelines(self, pieces: Sequence[bytes]) -> None:
        self.write(b"".join(pieces))

    async def drain(self) -> None: ...

    def close(self) -> None: ...


def fuzz_http(data: bytes) -> None:
    """Requests of one connection, down to the calls in them."""
    taken = []

    async def handler(body: bytes) -> bytes:
        with suppress(XendError):
            decode_call(body)
            taken.append(body)
        return b"<methodResponse/>"

    _at_once(data, lambda reader: http.serve(reader, _Writer(), handler))  # type: ignore[arg-type]  # see _Writer
    if not taken:
        raise HandshakeError("no call")


def fuzz_libvirt(data: bytes) -> None:
    """Packets of one connection, each call's arguments taken apart as its procedure says."""

    async def serve(reader: asyncio.StreamReader) -> None:
        while (packet := await wire.read_packet(reader)) is not None:
            if packet.program == wire.REMOTE_PROGRAM and packet.procedure in LAYOUTS:
                check_arguments(packet.procedure, packet.body)
            packet.reply(b"").encode()

    _at_once(data, serve)


def fuzz_libvirt_xml(data: bytes) -> None:
    xml_config.from_xml(data.decode("utf-8", "replace"))


@dataclass(frozen=True)
class Target:
    """A function to call with any bytes, and inputs to begin from."""

    call: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]

    def run(self, data: bytes) -> bool:
        """Return whether the parser took it; anything but an error of ours is a find."""
        try:
            self.call(data)
        except XendError as error:
            assert str(error)
            return False
        return True


TARGETS: Mapping[str, Target] = {
    "sxp": Target(fuzz_sxp, lambda: [seeds.config(), seeds.config(hvm=True), seeds.QUOTED]),
    "control": Target(
        fuzz_control,
        lambda: [
            b"help\nreceive\nLinux", b"(receive (live 1))\n", b"(err (type T) (value 'a b'))\n",
            incoming.opening("ab" * 16, "6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10"),
        ],
    ),
    "relocation": Target(
        fuzz_relocation, lambda: [seeds.relocation(), seeds.relocation(hvm=True)]
    ),
    "legacy-pv": Target(
        fuzz_legacy_pv,
        lambda: [
            streams.pv_image(**seeds.SMALL, release=release).wire  # type: ignore[arg-type]  # keywords of several kinds
            for release in ("3.1", "4.4")
        ],
    ),
    "legacy-hvm": Target(
        fuzz_legacy_hvm, lambda: [streams.hvm_image((streams.entries(range(3)),)).wire]
    ),
    "libxc": Target(
        fuzz_libxc,
        lambda: [modern.pv_image(p2m_size=8), modern.hvm_image((streams.entries(range(3)),))],
    ),
    "libxl": Target(
        fuzz_libxl,
        lambda: [
            modern.libxl_stream(modern.pv_image(p2m_size=8)),
            modern.xl_header(b"{}\0") + modern.libxl_stream(modern.pv_image(p2m_size=8)),
        ],
    ),
    "frames": Target(
        fuzz_frames,
        lambda: [
            b"\0" + seeds.framed(),
            b"\1" + seeds.framed(FrameSums(b"a\n", b"b\n")),
            b"\0" + seeds.framed().replace(b"1.5", b"1e999"[:3]),
            b"\0" + frames.FRAME.pack(FrameType.PLAN, 4) + json.dumps([[]]).encode(),
        ],
    ),
    "answers": Target(fuzz_answers, lambda: [seeds.answered()]),
    "xmlrpc": Target(fuzz_xmlrpc, lambda: [seeds.call()]),
    "http": Target(fuzz_http, lambda: [seeds.POST % (len(seeds.call()), seeds.call()) * 2]),
    "libvirt": Target(fuzz_libvirt, lambda: [seeds.packets()]),
    "libvirt-xml": Target(fuzz_libvirt_xml, lambda: [seeds.XML]),
}  # fmt: skip


def inputs(name: str) -> list[bytes]:
    """Return the seeds of a target, and what fuzzing once found."""
    found = sorted((CORPUS / name).glob("*"))
    return [*TARGETS[name].seeds(), *(path.read_bytes() for path in found)]
