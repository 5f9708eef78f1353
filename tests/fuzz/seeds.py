"""Inputs to begin from: whole messages, that a change here and there leads away from."""

from __future__ import annotations

from tests import streams
from tests.relocation_tape import Tape
from xendpy.control.libvirt import wire, xdr
from xendpy.guest.pages import PAGE_SIZE
from xendpy.relocation import frames, packing
from xendpy.relocation.frames import FrameType
from xendpy.relocation.sums import FrameSums

QUOTED = rb"(a 'b\x41\'' #c" + b"\n1)"


def config(*, hvm: bool = False) -> bytes:
    return streams.config(hvm=hvm)


def framed(sums: FrameSums | None = None) -> bytes:
    tape = Tape()
    tape.sums = sums
    facts = {"host": "a", "clock_s": 1.5, "uptime_s": 3, "disks": {"/d": {"size": 1}}}
    frames.send_json(tape, FrameType.PLAN, {"live": True, "dry_run": False, "facts": facts})
    frames.send_frame(tape, FrameType.CONFIG, config())
    frames.send_data(tape, [b"image"])
    frames.send_image(tape, [b"ab", memoryview(bytes(PAGE_SIZE))], packing.Packer())
    words = memoryview(b"page" * (PAGE_SIZE // 4))
    frames.send_image(tape, [words], packing.Packer(compress=True))
    frames.send_frame(tape, FrameType.IMAGE_END, frames.IMAGE_BYTES.pack(7 + 2 * PAGE_SIZE))
    return tape.sent


def answered() -> bytes:
    tape = Tape()
    said = {"name": "memory", "status": "ok", "detail": "64 MiB"}
    frames.send_json(tape, FrameType.CHECKS, {"checks": [said]})
    frames.send_frame(tape, FrameType.RESERVED)
    frames.send_frame(tape, FrameType.RECEIVED)
    frames.send_json(tape, FrameType.RUNNING, {"resume_s": 0.25})
    return tape.sent


def packets() -> bytes:
    guest = xdr.Writer().domain("web1", streams.UUID, 1)
    bodies = {
        1: xdr.Writer().opt_string("xen:///system").u32(0),
        62: guest.opaque(b"cookie").string("xen://b/").u64(3).opt_string("web1").u64(0),
        344: xdr.Writer().u32(1).domain("web1", streams.UUID, 1).u32(2, 0),
        350: xdr.Writer().string("<domain/>").u32(0),
    }
    packets = [
        wire.Packet(wire.REMOTE_PROGRAM, wire.VERSION, number, wire.Type.CALL, 1, 0, body.data())
        for number, body in bodies.items()
    ]
    ping = wire.message(wire.PING, b"", wire.KEEPALIVE_PROGRAM)
    return b"".join(packet.encode() for packet in [*packets, ping])


CALL = b"<?xml version='1.0'?><methodCall><methodName>xend.domain.migrate</methodName><params>%s"
VALUE = (
    b"<param><value><struct><member><name>a</name><value><int>1</int></value></member></struct>"
)
POST = b"POST /RPC2 HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n%s"
XML = b"<domain type='xen'><name>a</name><memory>1</memory><os><type>linux</type></os></domain>"
SMALL = {"p2m_size": 8, "rounds": (streams.entries(range(4)),)}


def call() -> bytes:
    return CALL % (VALUE + b"</value></param>") + b"</params></methodCall>"


def relocation(*, hvm: bool = False) -> bytes:
    image = streams.hvm_image((streams.entries(range(3)),)) if hvm else streams.pv_image(**SMALL)  # type: ignore[arg-type]  # keywords of several kinds
    return streams.envelope(config(hvm=hvm)) + image.wire
