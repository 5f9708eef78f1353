"""Digests of frames: agreed on by the control lines, and wrong after any flipped bit."""

from __future__ import annotations

import pytest
import xxhash

from tests.relocation_tape import Tape
from xendpy.errors import HandshakeError, StreamTruncated
from xendpy.relocation import incoming
from xendpy.relocation.frames import IMAGE_BYTES, FrameType, recv_frame, send_data, send_frame
from xendpy.relocation.image_source import ImageSource
from xendpy.relocation.sums import LONG_BYTES, FrameSums

ID, HOST = "ab" * 16, "6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10"
OPENING = incoming.opening(ID, HOST)
READY = incoming.ready_line(HOST, incoming.Request(ID, HOST, incoming.FEATURES, OPENING))
PAGES = bytes(range(256)) * 32


def test_a_frame_carries_both_digests() -> None:
    tape = Tape()
    tape.sums = FrameSums(b"opening\n", b"ready\n")
    send_frame(tape, FrameType.RELEASED)
    send_frame(tape, FrameType.ABORT, b"no")
    whole = xxhash.xxh3_128(b"opening\nready\n")
    wanted = b""
    for header, body in ((b"\x05\0\0\0\0\0\0\0", b""), (b"\x07\0\0\0\x02\0\0\0", b"no")):
        whole.update(header)
        wanted += header + (whole.intdigest() & (1 << 64) - 1).to_bytes(8, "little")
        if body:
            whole.update(body)
            wanted += body + whole.digest()
    assert tape.sent == wanted


def stream() -> bytes:
    """Return what a source sends up to the end of an image."""
    tape = Tape()
    tape.sums = FrameSums(OPENING, READY)
    send_frame(tape, FrameType.PLAN, b"{}")
    send_data(tape, [b"head", memoryview(PAGES)])
    send_data(tape, [])
    send_data(tape, [b"tail"])
    send_frame(tape, FrameType.IMAGE_END, IMAGE_BYTES.pack(8 + len(PAGES)))
    return tape.sent


def take(data: bytes, opening: bytes = OPENING, ready: bytes = READY) -> bytes:
    """Receive `stream` as a target does, up to where it would say received."""
    tape = Tape(data)
    tape.sums = FrameSums(opening, ready)
    recv_frame(tape, FrameType.PLAN)
    source = ImageSource(tape)
    got = source.recv_exactly(8 + len(PAGES))
    source.finish()
    return got


def test_an_undamaged_image_is_received() -> None:
    assert take(stream()) == b"head" + PAGES + b"tail"


def test_a_flipped_bit_anywhere_is_found() -> None:
    data = stream()
    for offset in [
        *range(120),
        *range(120, len(data) - 140, 37),
        *range(len(data) - 140, len(data)),
    ]:
        damaged = bytearray(data)
        damaged[offset] ^= 1 << offset % 8
        with pytest.raises(HandshakeError, match="checksum is wrong"):
            take(bytes(damaged))


def test_a_flipped_bit_in_a_control_line_is_found() -> None:
    for line in (OPENING, READY):
        for offset in range(len(line)):
            damaged = bytearray(line)
            damaged[offset] ^= 1
            lines = (bytes(damaged), READY) if line is OPENING else (OPENING, bytes(damaged))
            with pytest.raises(HandshakeError, match="checksum is wrong"):
                take(stream(), *lines)


def test_an_image_cut_short_is_truncated() -> None:
    with pytest.raises(StreamTruncated):
        take(stream()[:-LONG_BYTES])


def test_what_a_running_guest_writes_meanwhile_is_not_sent() -> None:
    page = bytearray(b"before" * 100)
    tape = Tape()
    tape.sums = FrameSums(OPENING, READY)
    pieces = tape.sums.seal(b"\x03\0\0\0\x58\x02\0\0", [memoryview(page)])
    page[:6] = b"after!"
    assert bytes(pieces[2]) == b"before" * 100


def test_both_sides_agree_by_the_control_lines() -> None:
    from xendpy.relocation.channel import Channel

    class Line(Channel):
        def __init__(self) -> None:
            self.sums = None

    for features, agreed in ((("v1", "xxh3"), True), (("v1",), False)):
        line = Line()
        request = incoming.Request(ID, HOST, features, OPENING)
        incoming.agree(line, OPENING, incoming.ready_line(HOST, request))
        assert (line.sums is not None) is agreed
