"""libxl streams and xl save files."""

from __future__ import annotations

import pytest

from tests import modern, recorded
from tests.drive import Recorder, drive_bytes
from tests.modern import emulator, libxl_stream, record, xl_header
from xendpy.errors import RecordError, RecordOrderError, StreamError, UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.stream import libxl
from xendpy.stream.libxl import LibxlEncoder, XlHeader, encode_xl_header, read_xl_header
from xendpy.stream.records import EmulatorContext, EmulatorSignature, EmulatorXenstore, End
from xendpy.stream.steps import Steps

KEYS = b"physmap/f0/size\x00800000\x00physmap/f0/name\x00vga.vram\x00"
XENSTORE, STATE = EmulatorXenstore(2, 0, KEYS), EmulatorContext(EmulatorSignature.V2, b"QEVM!", 2)
HVM = libxl_stream(modern.hvm_image(), emulator(2, KEYS), emulator(3, b"QEVM!"))

# Xen 4.17 in a recorded domain header; what we write says that no hypervisor made it.
XEN_VERSION = 32


def save_file() -> Steps[XlHeader]:
    header = yield from read_xl_header()
    yield from libxl.decode()
    return header


def decode(wire: bytes) -> Recorder:
    recorder = Recorder()
    _, taken = drive_bytes(libxl.decode(), wire, recorder)
    assert taken == len(wire)
    return recorder


def test_golden_frame() -> None:
    image = modern.hvm_image()
    assert HVM.startswith(bytes.fromhex("4c6962786c466d74 00000002 00000000 0100000000000000"))
    assert (
        HVM[:24]
        + image
        + bytes.fromhex("02000000 38000000 02000000 00000000")
        + KEYS
        + bytes.fromhex("03000000 0d000000 02000000 00000000")
        + b"QEVM!\0\0\0"
        + bytes(8)
    ) == HVM


def test_device_model_follows_the_image() -> None:
    assert decode(HVM).records[-3:] == [XENSTORE, STATE, End()]


@pytest.mark.parametrize("is_converted", [False, True])
def test_encoded_again_it_is_the_same(is_converted: bool) -> None:
    encoder = LibxlEncoder(GuestType.HVM, is_converted=is_converted)
    wire = b"".join(piece for item in decode(HVM).records for piece in encoder.encode(item))
    options = bytes([0, 0, 0, 2 if is_converted else 0])
    at = 24 + XEN_VERSION
    assert (
        wire == HVM[:12] + options + HVM[16:at] + bytes([0, 0, 0, 0, 1, 0, 0, 0]) + HVM[at + 8 :]
    )


@pytest.mark.parametrize("name", [recorded.XL_PV, recorded.XL_PVH])
def test_real_save_file_is_encoded_again_byte_for_byte(name: str) -> None:
    wire = recorded.xl_save(name)
    recorder = Recorder()
    header, taken = drive_bytes(save_file(), wire, recorder)
    assert taken == len(wire)
    assert (header.is_json, header.is_v2) == (True, True)
    assert header.config.startswith(b"{") and header.config.endswith(b"}\n\0")
    encoder = LibxlEncoder(recorder.records[0].guest_type, is_converted=False)  # type: ignore[union-attr]
    again = bytearray(encode_xl_header(header))
    at = len(again) + 24 + XEN_VERSION
    for item in recorder.records:
        again += b"".join(encoder.encode(item))
    assert wire[at : at + 8] == bytes.fromhex("04000000 11000000")
    again[at : at + 8] = wire[at : at + 8]
    assert again == wire


PV = libxl_stream(modern.pv_image())
HEAD = PV[:16]
IMAGE = PV[: -len(record(0))]
BAD: list[tuple[str, bytes, type[StreamError], str, int]] = [
    ("ident", b"X" + PV[1:], RecordError, "begins with 0x586962786c466d74", 0),
    ("version", PV[:11] + b"\1" + PV[12:], UnsupportedStream, "version 1", 0),
    ("big-endian", PV[:15] + b"\1" + PV[16:], UnsupportedStream, "big-endian", 0),
    ("options", PV[:15] + b"\4" + PV[16:], RecordError, "options 0x4", 0),
    ("unknown", HEAD + record(6), StreamError, "record type 0x6 is not known", 16),
    ("optional", HEAD + record(1 << 31), StreamError, "0x80000000 is not known", 16),
    ("checkpoint", HEAD + record(4), UnsupportedStream, "checkpointed", 16),
    ("no-image", HEAD + record(0), RecordError, "expected one libxc image", 16),
    ("context-length", HEAD + record(1, bytes(8)), RecordError, "8 bytes, expected", 16),
    ("image-twice", IMAGE + record(1), RecordError, "expected one libxc image", len(IMAGE)),
    ("pv-emulator", IMAGE + emulator(3, b"s"), RecordOrderError, "EmulatorContext", len(IMAGE)),
    ("end-length", IMAGE + record(0, bytes(8)), RecordError, "8 bytes", len(IMAGE)),
]


@pytest.mark.parametrize(
    ("wire", "error", "text", "at"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_refused(wire: bytes, error: type[StreamError], text: str, at: int) -> None:
    with pytest.raises(StreamError) as caught:
        drive_bytes(libxl.decode(), wire, Recorder())
    assert type(caught.value) is error
    assert text in str(caught.value)
    assert caught.value.offset == at


BAD_EMULATOR = [
    ("short", record(3, bytes(7)), "7 bytes, expected 8 or more"),
    ("id", emulator(3, b"s", emulator_id=3), "emulator id 0x3"),
    ("no-nul", emulator(2, b"key\0value"), "each with a NUL"),
    ("odd", emulator(2, b"key\0"), "each with a NUL"),
]


@pytest.mark.parametrize(
    ("wire", "text"), [row[1:] for row in BAD_EMULATOR], ids=[row[0] for row in BAD_EMULATOR]
)
def test_emulator_record_refused(wire: bytes, text: str) -> None:
    image = libxl_stream(modern.hvm_image())[: -len(record(0))]
    with pytest.raises(RecordError, match=text) as caught:
        drive_bytes(libxl.decode(), image + wire + record(0), Recorder())
    assert caught.value.offset == len(image)


HEADERS = [
    ("json", xl_header(b"{}\0"), XlHeader(b"{}\0", is_json=True, is_v2=True)),
    ("text", xl_header(b"name='x'\0", flags=0), XlHeader(b"name='x'\0", False, False)),
    ("no-config", xl_header(b"", flags=2), XlHeader(b"", is_json=False, is_v2=True)),
]


@pytest.mark.parametrize(("wire", "header"), [h[1:] for h in HEADERS], ids=[h[0] for h in HEADERS])
def test_xl_header_both_ways(wire: bytes, header: XlHeader) -> None:
    assert drive_bytes(read_xl_header(), wire + b"x", Recorder()) == (header, len(wire))
    assert encode_xl_header(header) == wire


GOOD = xl_header(b"{}\0")
BAD_HEADERS = [
    ("magic", b"Y" + GOOD[1:], "not a save file of xl"),
    ("byte-order", GOOD[:32] + b"\1\2\3\4" + GOOD[36:], "byte order 0x4030201"),
    ("flag", GOOD[:36] + b"\4" + GOOD[37:], "mandatory flag 0x4"),
    ("long", GOOD[:44] + b"\0\0\x11\0" + GOOD[48:], "1114112 bytes of optional data"),
    ("config", GOOD[:48] + b"\4" + GOOD[49:], "7 bytes of optional data"),
]


@pytest.mark.parametrize(
    ("wire", "text"), [row[1:] for row in BAD_HEADERS], ids=[row[0] for row in BAD_HEADERS]
)
def test_xl_header_refused(wire: bytes, text: str) -> None:
    with pytest.raises(StreamError, match=text):
        drive_bytes(read_xl_header(), wire, Recorder())
