"""Streams of one format written as another."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests import modern, recorded, streams
from tests.drive import Recorder, drive_bytes
from xendpy.errors import RecordError, UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import PageBatch
from xendpy.stream import libxc, libxl
from xendpy.stream.convert import Conversion, Survey, to_legacy, to_modern
from xendpy.stream.convert_legacy import is_unused
from xendpy.stream.convert_modern import physmap_keys
from xendpy.stream.legacy_dialect import DIALECTS
from xendpy.stream.libxc_encode import LibxcEncoder
from xendpy.stream.libxl import LibxlEncoder
from xendpy.stream.records import (
    EmulatorContext,
    EmulatorSignature,
    EmulatorXenstore,
    HvmParams,
    OnlineVcpus,
    PvInfo,
    SharedInfo,
    StreamStart,
    UnmappedPfns,
    VcpuContext,
    VcpuContextKind,
)
from xendpy.stream.steps import Steps
from xendpy.stream.xend import decode_body


class Sheet:
    """Collects what is written; pieces are copied, as a socket would."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, pieces: Iterable[bytes | memoryview]) -> None:
        for piece in pieces:
            self.data += piece


def modernize(image: bytes, guest: GuestType, *, keeps_unmapped: bool = False) -> bytes:
    sheet = Sheet()
    encoder = LibxlEncoder(guest, is_converted=True)
    conversion = to_modern(encoder, sheet.write, keeps_unmapped=keeps_unmapped)
    drive_bytes(decode_body(guest), image, conversion)
    return bytes(sheet.data)


def bare(image: bytes) -> bytes:
    sheet = Sheet()
    conversion = to_modern(LibxcEncoder(GuestType.PV), sheet.write)
    drive_bytes(decode_body(GuestType.PV), image, conversion)
    return bytes(sheet.data)


def legacy(
    decoder: Callable[[], Steps[Any]], wire: bytes, release: str = "4.4", *, lossy: bool = False
) -> tuple[bytes, list[str]]:
    survey, sheet = Survey(DIALECTS[release]), Sheet()
    drive_bytes(decoder(), wire, survey)
    conversion, notes = to_legacy(survey.facts(), DIALECTS[release], sheet.write, lossy=lossy)
    drive_bytes(decoder(), wire, conversion)
    return bytes(sheet.data), notes


def decode(steps: Steps[Any], wire: bytes) -> Recorder:
    recorder = Recorder()
    _, taken = drive_bytes(steps, wire, recorder)
    assert taken == len(wire)
    return recorder


def of_kind(recorder: Recorder, kind: type) -> list[Any]:
    return [item for item in recorder.records if isinstance(item, kind)]


def test_golden_pv_to_libxc() -> None:
    page = b"\xaa" * 4096
    image = streams.pv_image([[streams.Entry(5, 0x9, page)]], p2m_size=8, xcnt=32)
    context, extended = streams.context(0, 8), struct.pack("<II", 0, 0x38).ljust(128, b"\x5a")
    assert bare(image.wire) == b"".join(
        (
            bytes.fromhex("ffffffffffffffff 58454e46 00000003 0000000000000000"),
            bytes.fromhex("01000000 0c000000 00000000 01000000"),
            bytes.fromhex("02000000 08000000 0804000000000000"),
            bytes.fromhex("10000000 00000000"),
            bytes.fromhex("03000000 10000000 00000000 07000000 0400000000000000"),
            bytes.fromhex("08000000 18000000 02000000 bbac2700 0000000000010000 0300000000000000"),
            bytes.fromhex("01000000 10100000 01000000 00000000 0500000000000090") + page,
            bytes.fromhex("04000000 38140000 0000000000000000") + context,
            bytes.fromhex("05000000 88000000 0000000000000000") + extended,
            bytes.fromhex("06000000 18000000 0000000000000000") + bytes(16),
            bytes.fromhex("07000000 00100000") + bytes(4096),
            bytes.fromhex("00000000 00000000"),
        )
    )


@pytest.mark.parametrize("name", recorded.ALL)
def test_recorded_stream_arrives_whole(name: str) -> None:
    guest = GuestType(recorded.load(name)[1]["kind"])
    before = decode(decode_body(guest), recorded.image(name))
    wire = modernize(recorded.image(name), guest, keeps_unmapped=True)
    after = decode(libxl.decode(guest), wire)
    assert after.memory == before.memory
    kept = {pfn: kind for pfn, kind in after.types.items() if kind != 0xF}
    assert kept == before.types


def test_unmapped_pfns_are_dropped_unless_asked_for() -> None:
    rounds = [streams.entries(range(8)), streams.entries([1], 1)]
    image = streams.pv_image(rounds, p2m_size=8, unmapped=[3])
    dropped = decode(libxl.decode(), modernize(image.wire, GuestType.PV))
    kept = decode(libxl.decode(), modernize(image.wire, GuestType.PV, keeps_unmapped=True))
    assert 3 in dropped.memory
    assert kept.memory == image.memory


def test_xends_device_model_record_becomes_libxls() -> None:
    after = decode(libxl.decode(), modernize(streams.hvm_image().wire, GuestType.HVM))
    (state,) = of_kind(after, EmulatorContext)
    assert state == EmulatorContext(EmulatorSignature.V2, streams.QEMU_STATE)
    params = dict(pair for item in of_kind(after, HvmParams) for pair in item.params)
    assert params == {**streams.DEFAULT_PARAMS, 5: 0xFEFFD, 6: 0xFEFFB, 1: 0xFEFFC}


@pytest.mark.parametrize("release", ["3.0", "3.1"])
@pytest.mark.parametrize("width", [4, 8])
def test_absent_ext_info_is_made_up_for(release: str, width: int) -> None:
    image = streams.pv_image(release=release, width=width, guest_width=width)
    after = decode(libxl.decode(), modernize(image.wire, GuestType.PV))
    assert after.memory == image.memory
    (info,) = of_kind(after, PvInfo)
    assert (info.guest_width, info.pt_levels) == (width, {8: 4, 4: 3}[width])


def test_context_of_3_0_is_completed() -> None:
    shared = bytes(3096) + b"\x77" * 8 + bytes(4096 - 3104)
    image = streams.pv_image(release="3.0", shared_info=shared)
    after = decode(libxl.decode(), modernize(image.wire, GuestType.PV))
    sent = bytearray(streams.context(0, 8))
    sent[512] |= 0x20  # online
    sent[4992:5000] = bytes(8)  # cr1
    assert of_kind(after, VcpuContext) == [VcpuContext(0, VcpuContextKind.BASIC, bytes(sent))]
    assert of_kind(after, SharedInfo) == [SharedInfo(bytes(4096))]


@pytest.mark.parametrize(("kind", "refused"), [(streams.L2, True), (streams.L3, False)])
def test_guest_without_pae_is_refused(kind: int, refused: bool) -> None:
    cr3 = bytearray(streams.context(0, 4))
    cr3[2728:2732] = struct.pack("<I", 9 << 12)
    page = streams.page(9)
    head = streams.ul(4, 64) + streams.p2m_frames(64, 4, width=4)
    body = streams.batch([streams.Entry(9, kind | 8, page)], width=4) + streams.chunk(0)
    wire = head + body + bytes(4) + cr3 + bytes(4096)
    if refused:
        with pytest.raises(UnsupportedStream, match="without PAE"):
            modernize(wire, GuestType.PV)
    else:
        assert modernize(wire, GuestType.PV)


def toolstack(width: int) -> bytes:
    name = b"vga.vram\0" + b"junk" * (width == 8)
    return struct.pack("<II", 1, 1) + struct.pack("<QQQI", 0xF0, 0xE0, 0x800000, 9) + name


@pytest.mark.parametrize("width", [4, 8])
def test_physmap_becomes_xenstore_keys(width: int) -> None:
    blob = toolstack(width)
    chunk = streams.chunk(streams.TOOLSTACK, struct.pack("<I", len(blob)) + blob)
    image = streams.hvm_image(before_end=chunk, width=width)
    after = decode(libxl.decode(), modernize(image.wire, GuestType.HVM))
    keys = b"physmap/f0/start_addr\0e0\0physmap/f0/size\x00800000\0physmap/f0/name\0vga.vram\0"
    assert of_kind(after, EmulatorXenstore) == [EmulatorXenstore(0, 0, keys)]


@pytest.mark.parametrize("cut", [4, 20, 40])
def test_cut_physmap_is_refused(cut: int) -> None:
    with pytest.raises(RecordError, match="TOOLSTACK"):
        physmap_keys(toolstack(8)[:cut], 8)


def test_physmap_of_another_version_is_refused() -> None:
    with pytest.raises(RecordError, match="version 2, expected 1"):
        physmap_keys(b"\2" + toolstack(8)[1:], 8)


# v2 -> legacy

XSAVE = struct.pack("<QQ", 7, 3) + bytes(64)


def test_pv_comes_back() -> None:
    rounds: Sequence[Sequence[streams.Entry]] = [
        streams.entries(range(40)),
        [streams.Entry(5, streams.XTAB), *streams.entries([7], 1, streams.L1)],
        [streams.Entry(8, streams.XTAB)],
        streams.entries([8], 2),
    ]
    wire = modern.pv_image(rounds, vcpus=(0, 3), xsave=XSAVE)
    image, notes = legacy(libxc.decode, wire)
    before, after = decode(libxc.decode(), wire), decode(decode_body(GuestType.PV), image)
    assert after.memory == before.memory
    assert 5 not in after.memory and 8 in after.memory
    assert after.types == {pfn: kind for pfn, kind in before.types.items() if kind != 0xF}
    (start,), (info,) = of_kind(after, StreamStart), of_kind(after, PvInfo)
    assert start.p2m_size == 64
    assert (info.xsave_bytes, info.extended) == (96, True)
    assert info.context == streams.context(0, 8)
    assert of_kind(after, OnlineVcpus) == [OnlineVcpus(3, (0, 3))]
    (unmapped,) = of_kind(after, UnmappedPfns)
    assert unmapped.pfns.tolist() == [5, *range(40, 64)]
    xsaves = [item for item in of_kind(after, VcpuContext) if item.kind is VcpuContextKind.XSAVE]
    assert [(item.blob, item.xfeature_mask) for item in xsaves] == [(XSAVE, 3), (XSAVE, 3)]
    assert [note.split(":")[0] for note in notes] == ["CpuidPolicy", "MsrPolicy"]


def test_p2m_that_grew_comes_back_whole() -> None:
    wire = (
        modern.headers(modern.PV)
        + modern.pv_info()
        + modern.record(modern.STATIC_DATA_END)
        + modern.p2m_frames(0, 511, 4)
        + modern.page_data(streams.entries([3]))
        + modern.p2m_frames(512, 600, 5)
        + modern.page_data(streams.entries([600]))
        + modern.record(modern.SHARED_INFO, bytes(4096))
        + modern.vcpu(modern.BASIC, 0, streams.context(0, 8))
        + modern.record(modern.END)
    )
    after = decode(decode_body(GuestType.PV), legacy(libxc.decode, wire)[0])
    assert set(after.memory) == {3, 600}
    assert np.array_equal(after.records[2].frames, [4, 5])  # type: ignore[union-attr]


@pytest.mark.parametrize("release", ["4.0", "4.1", "4.4"])
def test_real_pv_save_comes_back(release: str) -> None:
    def save_file() -> Steps[None]:
        yield from libxl.read_xl_header()
        yield from libxl.decode()

    wire = recorded.xl_save(recorded.XL_PV)
    image, notes = legacy(save_file, wire, release)
    before, after = decode(save_file(), wire), decode(decode_body(GuestType.PV), image)
    assert after.memory == before.memory
    assert len(notes) == 2


def test_there_and_back_is_the_same() -> None:
    image = recorded.image(recorded.PV64)
    modernized = modernize(image, GuestType.PV, keeps_unmapped=True)
    back, _ = legacy(libxl.decode, modernized)
    before, after = (decode(decode_body(GuestType.PV), wire) for wire in (image, back))
    assert after.memory == before.memory
    # The head's context was taken while the guest ran; of it, only size and vm_assist matter.
    infos = [of_kind(recorder, PvInfo)[0] for recorder in (before, after)]
    assert replace(infos[0], context=b"") == replace(infos[1], context=b"")
    for kind in (VcpuContext, SharedInfo, OnlineVcpus):
        assert of_kind(after, kind) == of_kind(before, kind)
    # The same frames are gone at the end.
    lists = [of_kind(recorder, UnmappedPfns)[0].pfns for recorder in (before, after)]
    assert set(lists[0].tolist()) <= set(lists[1].tolist())


def test_msrs_are_refused_unless_lossy() -> None:
    wire = modern.pv_image(msrs=bytes(16))
    with pytest.raises(UnsupportedStream, match="the MSRs of vcpu 0"):
        legacy(libxc.decode, wire)
    _, notes = legacy(libxc.decode, wire, lossy=True)
    assert notes[-1] == "the MSRs of vcpu 0 are left out"


def test_differing_xsave_sizes_are_refused() -> None:
    wire = modern.pv_image(vcpus=(0, 1))
    extra = modern.vcpu(modern.XSAVE, 1, XSAVE)
    with pytest.raises(UnsupportedStream, match="differs between vcpus"):
        legacy(libxc.decode, wire[:-8] + extra + wire[-8:])


def test_high_pfns_are_refused() -> None:
    high = [streams.Entry(1 << 28, streams.XALLOC)]
    with pytest.raises(UnsupportedStream, match="a guest of 0x10000001 pages"):
        legacy(libxc.decode, modern.hvm_image([high]))


def test_hvm_comes_back_with_its_device_model() -> None:
    stream = modern.libxl_stream(
        modern.hvm_image(params=((1, 3), (5, 1), (6, 2), (12, 0xFEFFE000))),
        modern.emulator(3, b"QEVM state", emulator_id=1),
    )
    image, _ = legacy(libxl.decode, stream)
    before, after = decode(libxl.decode(), stream), decode(decode_body(GuestType.HVM), image)
    assert after.memory == before.memory
    assert of_kind(after, HvmParams) == [
        HvmParams(((12, 0xFEFFE000),)),
        HvmParams(((5, 1), (6, 2), (1, 3))),
    ]
    assert of_kind(after, EmulatorContext)[0].blob == b"QEVM state"


def test_hvm_parameter_without_a_legacy_chunk_is_refused() -> None:
    stream = modern.libxl_stream(modern.hvm_image(params=((38, 1),)), modern.emulator(3, b"QEVM"))
    with pytest.raises(UnsupportedStream, match="HVM parameter 38"):
        legacy(libxl.decode, stream)


class _Largest:
    """Passes everything on, and measures the memory behind the views."""

    def __init__(self, conversion: Conversion) -> None:
        self._conversion = conversion
        self.apply = conversion.apply
        self.bytes = 0

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        views = self._conversion.populate(batch)
        self.bytes = max(self.bytes, *(len(view.obj) for view in views))  # type: ignore[arg-type]
        return views


def test_conversion_holds_one_batch() -> None:
    sizes = []

    def write(pieces: Iterable[bytes | memoryview]) -> None:
        sizes.append(sum(len(piece) for piece in pieces))

    conversion = _Largest(to_modern(LibxlEncoder(GuestType.HVM, is_converted=True), write))
    rounds = [streams.entries(range(64))] * 3
    wire = streams.hvm_image(rounds, batch_pages=8).wire
    drive_bytes(decode_body(GuestType.HVM), wire, conversion)
    assert conversion.bytes == 8 * 4096
    # STATIC_DATA_END, record header, batch header, entries, pages
    assert max(sizes) == 8 + 8 + 8 + 8 * 8 + 8 * 4096


HEAD, CALLS = struct.pack("<II", 0, 0x38), struct.pack("<QQ", 0xFFFF800000001000, 0)
UNUSED = [
    ("3.1", VcpuContextKind.EXTENDED, HEAD.ljust(30, b"\0") + b"\x5a" * 34, True),
    ("3.1", VcpuContextKind.EXTENDED, (HEAD + CALLS).ljust(64, b"\0"), False),
    ("3.2", VcpuContextKind.EXTENDED, HEAD.ljust(64, b"\0"), False),
    ("4.0", VcpuContextKind.XSAVE, bytes(16), True),
    ("4.0", VcpuContextKind.XSAVE, bytes(17), False),
    ("4.1", VcpuContextKind.XSAVE, bytes(16), False),
    ("3.1", VcpuContextKind.BASIC, bytes(5168), False),
]


@pytest.mark.parametrize(("release", "kind", "blob", "unused"), UNUSED)
def test_what_an_old_xend_lacks_is_left_out_where_it_says_nothing(
    release: str, kind: VcpuContextKind, blob: bytes, unused: bool
) -> None:
    assert is_unused(VcpuContext(0, kind, blob), DIALECTS[release]) is unused
