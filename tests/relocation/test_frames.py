"""The framing between two xendpy hosts; golden bytes are typed from the module's table."""

from __future__ import annotations

import pytest

from tests.relocation_tape import Tape
from xendpy.errors import HandshakeError, StreamTruncated
from xendpy.relocation.frames import (
    MAX_DATA,
    FrameType,
    recv_frame,
    recv_header,
    send_data,
    send_frame,
    send_json,
)
from xendpy.relocation.image_source import ImageAborted, ImageSource


def test_frames_are_type_length_body() -> None:
    tape = Tape()
    send_frame(tape, FrameType.RELEASED)
    send_json(tape, FrameType.PLAN, {"live": True})
    assert send_data(tape, [b"ab", memoryview(b"cde")]) == 5
    released = b"\x05\0\0\0\0\0\0\0"
    plan = b"\x01\0\0\0\x0d\0\0\0" + b'{"live":true}'
    assert tape.sent == released + plan + b"\x03\0\0\0\x05\0\0\0abcde"


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"\x63\0\0\0\0\0\0\0", "frame type 0x63 is not known"),
        (b"\x07\0\0\0\x01\0\x40\0", "ABORT frame of 4194305 bytes"),
        (b"\x03\0\0\0" + (MAX_DATA + 1).to_bytes(4, "little"), "DATA frame of"),
    ],
)
def test_a_bad_header_is_refused_before_its_body(wire: bytes, text: str) -> None:
    with pytest.raises(HandshakeError, match=text):
        recv_header(Tape(wire))


def test_another_frame_than_expected_is_named() -> None:
    with pytest.raises(HandshakeError, match="RELEASED frame where RECEIVED, FAILED was expected"):
        recv_frame(Tape(b"\x05\0\0\0\0\0\0\0"), FrameType.RECEIVED, FrameType.FAILED)


def data(body: bytes) -> bytes:
    return b"\x03\0\0\0" + len(body).to_bytes(4, "little") + body


def end(count: int) -> bytes:
    return b"\x04\0\0\0\x08\0\0\0" + count.to_bytes(8, "little")


@pytest.mark.parametrize("cuts", [(10,), (1, 9), (3, 0, 4, 3), (0, 0, 10)])
def test_an_image_is_the_same_however_it_is_cut_into_frames(cuts: tuple[int, ...]) -> None:
    body, wire = b"0123456789", b""
    for size in cuts:
        wire, body = wire + data(body[:size]), body[size:]
    source = ImageSource(Tape(wire + end(10)))
    buffer = bytearray(7)
    source.recv_into([memoryview(buffer)[:2], memoryview(buffer)[2:]])
    assert (bytes(buffer), source.offset) == (b"0123456", 7)
    assert source.recv_rest(100) == b"789"
    source.finish()


def test_an_image_that_ends_early_says_where() -> None:
    source = ImageSource(Tape(data(b"abc") + end(3)))
    with pytest.raises(StreamTruncated) as caught:
        source.recv_exactly(5)
    assert (caught.value.offset, caught.value.wanted, caught.value.got) == (0, 5, 3)


def test_a_wrong_count_is_caught() -> None:
    source = ImageSource(Tape(data(b"abc") + end(4)))
    source.recv_exactly(3)
    with pytest.raises(HandshakeError, match="3 bytes, its sender counts 4"):
        source.finish()


def test_leftover_image_bytes_are_an_error() -> None:
    source = ImageSource(Tape(data(b"abc") + end(3)))
    source.recv_exactly(2)
    with pytest.raises(HandshakeError, match="1 image bytes follow"):
        source.finish()


def test_an_abort_inside_the_image_carries_its_reason() -> None:
    source = ImageSource(Tape(data(b"abc") + b"\x07\0\0\0\x04\0\0\0stop"))
    with pytest.raises(ImageAborted, match="stop"):
        source.recv_exactly(4)


def test_a_rest_is_bounded() -> None:
    with pytest.raises(StreamTruncated):
        ImageSource(Tape(data(b"x" * 20) + end(20))).recv_rest(10)
