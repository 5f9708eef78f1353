"""PACKED frames; golden bytes are typed from the module's table."""

from __future__ import annotations

import os

import pytest

from tests.relocation_tape import Tape
from xendpy.errors import HandshakeError
from xendpy.relocation import packing
from xendpy.relocation.frames import IMAGE_BYTES, FrameType, send_frame, send_image
from xendpy.relocation.image_source import ImageSource
from xendpy.relocation.packing import Packer
from xendpy.relocation.sums import FrameSums

PAGE = 4096
A, B, Z = b"A" * PAGE, os.urandom(PAGE), bytes(PAGE)


def views(*pages: bytes) -> list[memoryview]:
    """One view of all pages, as neighbours in a guest's memory are."""
    return [memoryview(bytearray(b"".join(pages)))] if pages else []


CASES = [
    ("zeros-alone", views(Z, Z)),
    ("zeros-first", views(Z, A, B)),
    ("zeros-last", views(A, Z)),
    ("alternating", views(A, Z, B, Z, A)),
    ("scattered", [*views(A), *views(Z), *views(Z), *views(B)]),
    ("header", [b"head", *views(Z, A)]),
    ("no-whole-page", [memoryview(bytearray(PAGE - 1))]),
    ("zeros-in-a-header", [bytes(PAGE)]),
    ("no-zeros", views(A, B)),
]


@pytest.mark.parametrize("pieces", [row[1] for row in CASES], ids=[row[0] for row in CASES])
@pytest.mark.parametrize("compress", [False, True], ids=["raw", "zstd"])
@pytest.mark.parametrize("summed", [False, True], ids=["plain", "summed"])
@pytest.mark.parametrize("cut", [1, 1000, PAGE, 1 << 20])
def test_an_image_is_the_same_packed_or_not(
    pieces: list[bytes | memoryview], compress: bool, summed: bool, cut: int
) -> None:
    if compress:
        pytest.importorskip("zstandard")
    wanted = b"".join(map(bytes, pieces))
    tape = Tape()
    tape.sums = FrameSums(b"opening", b"ready") if summed else None
    assert send_image(tape, pieces, Packer(compress=compress)) == len(wanted)
    send_frame(tape, FrameType.IMAGE_END, IMAGE_BYTES.pack(len(wanted)))
    reader = Tape(tape.sent)
    reader.sums = FrameSums(b"opening", b"ready") if summed else None
    source, got = ImageSource(reader), bytearray(b"\xff" * len(wanted))
    for start in range(0, len(wanted), cut):
        source.recv_into([memoryview(got)[start : start + cut]])
    source.finish()
    assert got == wanted and not reader.data


def test_a_page_of_zeros_is_eight_bytes_of_a_table() -> None:
    tape = Tape()
    send_image(tape, [b"he", *views(Z, A)], Packer())
    runs = b"\0\0\0\0\x02\0\0\0" + b"\0\0\0\0\x02\0\0\0" + b"\0\x10\0\0\0\x10\0\0"
    length = len(runs) + 2 + PAGE
    assert tape.sent == b"\x08\0\0\0" + length.to_bytes(4, "little") + runs + b"he" + A


def test_without_zeros_a_data_frame_is_sent() -> None:
    tape = Tape()
    send_image(tape, views(A), Packer())
    assert tape.sent[:4] == b"\x03\0\0\0"


def test_data_that_zstd_cannot_shrink_go_raw() -> None:
    pytest.importorskip("zstandard")
    tape = Tape()
    send_image(tape, views(B, Z), Packer(compress=True))
    assert tape.sent[8:12] == b"\0\0\0\0" and B in tape.sent


def frame(codec: int, runs: list[tuple[int, int]], data: bytes, count: int | None = None) -> bytes:
    table = packing.HEAD.pack(codec, len(runs) if count is None else count)
    body = table + b"".join(packing.RUN.pack(*run) for run in runs) + data
    return b"\x08\0\0\0" + len(body).to_bytes(4, "little") + body


BAD = [
    ("no-runs", frame(0, [], b""), "0 runs"),
    ("many-runs", frame(0, [], b"", count=1 << 17), "131072 runs"),
    ("cut-table", frame(0, [], b"", count=2), "with 0 bytes where 16 are needed"),
    ("no-head", b"\x08\0\0\0\x04\0\0\0\0\0\0\0", "with 4 bytes where 8 are needed"),
    ("less-data", frame(0, [(0, 8)], b"1234"), "codec 0, 8 bytes of data in 4"),
    ("more-data", frame(0, [(8, 0)], b"1234"), "codec 0, 0 bytes of data in 4"),
    ("codec", frame(7, [(0, 4)], b"1234"), "codec 7"),
    ("bomb", frame(0, [(0xFFFFFFFF, 0)] * 2, b""), "at most"),
    ("nothing", frame(0, [(0, 0)], b""), "empty"),
    ("no-zstd", frame(1, [(0, 4)], b"1234"), "zstd"),
]


@pytest.mark.parametrize(("wire", "text"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_does_not_fit_together_is_refused(wire: bytes, text: str) -> None:
    with pytest.raises(HandshakeError, match=text):
        ImageSource(Tape(wire)).recv_exactly(1)


def test_a_zstd_frame_of_another_size_is_refused() -> None:
    zstandard = pytest.importorskip("zstandard")
    data = zstandard.ZstdCompressor().compress(b"x" * 100)
    with pytest.raises(HandshakeError, match="of 100 bytes, not 50"):
        ImageSource(Tape(frame(1, [(0, 50)], data))).recv_exactly(1)


def test_zstd_is_offered_only_where_it_was_asked_for() -> None:
    assert packing.offered(compress=False) == ("zero",)
