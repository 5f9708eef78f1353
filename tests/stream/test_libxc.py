"""libxc images v2 and v3 typed from the specification, in both directions."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import modern
from tests.drive import Recorder, drive_bytes, plain
from tests.modern import headers, p2m_frames, page_data, pv_info, record
from tests.streams import Entry
from xendpy.errors import (
    RecordError,
    RecordOrderError,
    StreamError,
    StreamTruncated,
    UnsupportedStream,
)
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import PageBatch
from xendpy.stream import libxc
from xendpy.stream.libxc_encode import LibxcEncoder
from xendpy.stream.limits import StreamLimits
from xendpy.stream.records import (
    Checkpoint,
    CpuidPolicy,
    EmulatorContext,
    EmulatorSignature,
    End,
    Ending,
    HvmContext,
    HvmParams,
    LastCheckpoint,
    MsrPolicy,
    OnlineVcpus,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    SharedInfo,
    StaticDataEnd,
    StreamStart,
    Toolstack,
    TscInfo,
    UnmappedPfns,
    VcpuContext,
    VcpuContextKind,
    Verify,
)
from xendpy.stream.xend import decode_body

A, B = b"\xaa" * 4096, b"\xbb" * 4096
CONTEXT_64, CONTEXT_32 = bytes(range(16)) * 323, bytes(range(16)) * 175  # 5168 and 2800 bytes
SHARED = b"\x51" * 4096


def hexa(text: str) -> bytes:
    return bytes.fromhex(text)


def pages(pfns: Sequence[int], types: Sequence[int], *data: bytes) -> Pages:
    batch = PageBatch(np.array(pfns, np.uint64), np.array(types, np.uint8))
    return Pages(batch, [memoryview(b"".join(data))] if data else [])


@dataclass(frozen=True)
class Case:
    """A whole image; `wire` is cut into records only to be read."""

    id: str
    version: int
    guest_type: GuestType
    records: list[Record]
    wire: list[bytes]


def start(guest_type: GuestType, version: int) -> StreamStart:
    return StreamStart(guest_type=guest_type, format=f"libxc-v{version}", tool_width=8, p2m_size=0)


CASES = [
    Case(
        "pv64-v3",
        3,
        GuestType.PV,
        [
            start(GuestType.PV, 3),
            PvInfo(guest_width=8, pt_levels=4),
            CpuidPolicy(bytes(24)),
            MsrPolicy(bytes(16)),
            StaticDataEnd(),
            P2mFrames(0, 0x200, np.array([3, 4], np.uint64)),
            pages([1, 0x200, 5, 6, 7], [0, 0xC, 0xD, 0xE, 0xF], A, B),
            Verify(),
            pages([1], [0x1], A),
            TscInfo(mode=1, khz=0x0A0B0C0D, nsec=0x1122334455667788, incarnation=9),
            SharedInfo(SHARED),
            VcpuContext(1, VcpuContextKind.BASIC, CONTEXT_64),
            VcpuContext(1, VcpuContextKind.EXTENDED, b"\xe0" * 61),
            VcpuContext(1, VcpuContextKind.XSAVE, b"\7" + bytes(7) + b"\x03" + bytes(7), 3),
            VcpuContext(1, VcpuContextKind.MSRS, b"\1" * 16),
            End(),
        ],
        [
            # marker, "XENF", version 3, options and reserved
            hexa("ffffffffffffffff 58454e46 00000003 0000 0000 00000000"),
            hexa("01000000 0c00 0000 00000000 01000000"),  # PV, 4 KiB pages, Xen 0.1
            hexa("02000000 08000000  08 04 000000000000"),  # X86_PV_INFO
            hexa("11000000 18000000") + bytes(24),  # X86_CPUID_POLICY
            hexa("12000000 10000000") + bytes(16),  # X86_MSR_POLICY
            hexa("10000000 00000000"),  # STATIC_DATA_END
            hexa("03000000 18000000  00000000 00020000 0300000000000000 0400000000000000"),
            hexa("01000000 30200000  05000000 00000000")  # PAGE_DATA: 8 + 5 * 8 + 2 pages
            + hexa("0100000000000000 00020000000000c0 05000000000000d0")
            + hexa("06000000000000e0 07000000000000f0")
            + A
            + B,
            hexa("0d000000 00000000"),  # VERIFY
            hexa("01000000 10100000  01000000 00000000 0100000000000010") + A,
            hexa("08000000 18000000  01000000 0d0c0b0a 8877665544332211 09000000 00000000"),
            hexa("07000000 00100000") + SHARED,
            hexa("04000000 38140000  01000000 00000000") + CONTEXT_64,
            hexa("05000000 45000000  01000000 00000000") + b"\xe0" * 61 + bytes(3),
            hexa("06000000 18000000  01000000 00000000 0700000000000000 0300000000000000"),
            hexa("0c000000 18000000  01000000 00000000") + b"\1" * 16,
            hexa("00000000 00000000"),
        ],
    ),
    Case(
        "pv32-v2",
        2,
        GuestType.PV,
        [
            start(GuestType.PV, 2),
            PvInfo(guest_width=4, pt_levels=3),
            StaticDataEnd(),
            P2mFrames(0, 0xF, np.array([2], np.uint64)),
            pages([0xF], [0], A),
            SharedInfo(SHARED),
            VcpuContext(0, VcpuContextKind.BASIC, CONTEXT_32),
            End(),
        ],
        [
            hexa("ffffffffffffffff 58454e46 00000002 0000 0000 00000000"),
            hexa("01000000 0c00 0000 00000000 01000000"),
            hexa("02000000 08000000  04 03 000000000000"),
            hexa("03000000 10000000  00000000 0f000000 0200000000000000"),
            hexa("01000000 10100000  01000000 00000000 0f00000000000000") + A,
            hexa("07000000 00100000") + SHARED,
            hexa("04000000 f80a0000  00000000 00000000") + CONTEXT_32,
            hexa("00000000 00000000"),
        ],
    ),
    Case(
        "hvm-v3",
        3,
        GuestType.HVM,
        [
            start(GuestType.HVM, 3),
            StaticDataEnd(),
            pages([0xFEFFF], [0], A),
            HvmContext(b"context"),
            HvmParams(((1, 0xFEFFC), (36, 8))),
            End(),
        ],
        [
            hexa("ffffffffffffffff 58454e46 00000003 0000 0000 00000000"),
            hexa("02000000 0c00 0000 00000000 01000000"),
            hexa("10000000 00000000"),
            hexa("01000000 10100000  01000000 00000000 ffef0f0000000000") + A,
            hexa("09000000 07000000") + b"context\0",
            hexa("0a000000 28000000  02000000 00000000")
            + hexa("0100000000000000 fcef0f0000000000 2400000000000000 0800000000000000"),
            hexa("00000000 00000000"),
        ],
    ),
]
each_case = pytest.mark.parametrize("case", CASES, ids=attrgetter("id"))


def decode(wire: bytes, limits: StreamLimits | None = None) -> Recorder:
    recorder = Recorder()
    steps = libxc.decode(limits=limits) if limits else libxc.decode()
    _, taken = drive_bytes(steps, wire, recorder)
    assert taken == len(wire)
    return recorder


def encode(records: Sequence[Record], guest_type: GuestType, version: int = 3) -> bytes:
    encoder = LibxcEncoder(guest_type, version)
    return b"".join(piece for item in records for piece in encoder.encode(item))


@each_case
def test_decode(case: Case) -> None:
    recorder = decode(b"".join(case.wire))
    assert recorder.plain() == [plain(item) for item in case.records]


@each_case
def test_encode(case: Case) -> None:
    assert encode(case.records, case.guest_type, case.version) == b"".join(case.wire)


@each_case
def test_found_behind_an_envelope_too(case: Case) -> None:
    recorder = Recorder()
    wire = b"".join(case.wire) + b"behind"
    _, taken = drive_bytes(decode_body(case.guest_type), wire, recorder)
    assert taken == len(wire) - 6
    assert recorder.plain() == [plain(item) for item in case.records]


def test_truncated_at_every_offset_reports_it() -> None:
    wire = b"".join(CASES[2].wire)
    for cut in range(len(wire)):
        with pytest.raises(StreamTruncated) as caught:
            decode(wire[:cut])
        error = caught.value
        assert (error.offset or 0) + error.got == cut
        assert error.got < error.wanted <= 4096


@each_case
def test_truncated_at_every_border_reports_it(case: Case) -> None:
    cut = 0
    for piece in case.wire[:-1]:
        cut += len(piece)
        with pytest.raises(StreamTruncated) as caught:
            decode(b"".join(case.wire)[:cut])
        assert (caught.value.offset, caught.value.got) == (cut, 0)


PV_HEAD = headers(modern.PV) + pv_info() + record(modern.STATIC_DATA_END)
PV_READY = PV_HEAD + p2m_frames(0, 63, 4)
HVM_READY = headers(modern.HVM) + record(modern.STATIC_DATA_END)
V2_HVM = headers(modern.HVM, version=2)


@dataclass(frozen=True)
class Bad:
    id: str
    before: bytes
    wire: bytes
    error: type[StreamError]
    text: str
    at: int = 0  # offset of the fault from the end of `before`


def entry(word: int, count: int = 1) -> bytes:
    return record(1, count.to_bytes(8, "little") + word.to_bytes(8, "little"))


def patched(at: int, new: bytes) -> bytes:
    head = headers(modern.PV)
    return head[:at] + new + head[at + len(new) :]


BAD = [
    Bad("marker", b"", patched(0, b"\0"), RecordError, "begins with 00ff"),
    Bad("ident", b"", patched(8, b"YENF"), RecordError, "expected ffffffffffffffff58454e46"),
    Bad("version-1", b"", patched(15, b"\1"), UnsupportedStream, "version 1"),
    Bad("version-4", b"", patched(15, b"\4"), UnsupportedStream, "version 4"),
    Bad("big-endian", b"", patched(17, b"\1"), UnsupportedStream, "big-endian"),
    Bad("options", b"", patched(17, b"\2"), RecordError, "reserved bits"),
    Bad("reserved", b"", patched(23, b"\1"), RecordError, "reserved bits"),
    Bad("domain-type", b"", patched(24, b"\3"), RecordError, "domain type 3", 24),
    Bad("page-shift", b"", patched(28, b"\x0d"), RecordError, "page shift 13", 24),
    Bad("unknown", PV_READY, record(19), StreamError, "record type 0x13 is not known"),
    Bad("toolstack", PV_READY, record(11), UnsupportedStream, "TOOLSTACK"),
    Bad("checkpoint", PV_READY, record(14), UnsupportedStream, "checkpointed"),
    Bad("dirty-pfns", PV_READY, record(15), UnsupportedStream, "checkpointed"),
    Bad("padding", PV_READY, record(5, bytes(9))[:-1] + b"\1", RecordError, "padding"),
    Bad("end-length", PV_READY, record(0, bytes(8)), RecordError, "8 bytes, expected at most 0"),
    Bad("page-data-short", PV_READY, record(1, bytes(4)), RecordError, "4 bytes, expected 8 to"),
    Bad("no-pfn", PV_READY, record(1, bytes(8)), RecordError, "0 pfns"),
    Bad(
        "page-data-long",
        PV_READY,
        struct.pack("<II", 1, (128 << 20) + 8),
        RecordError,
        "134217736 bytes, expected 8 to 134217728",
    ),
    Bad(
        "more-pfns-than-there-are",
        PV_READY,
        page_data([Entry(pfn % 64, 0xE) for pfn in range(65)]),
        RecordError,
        "expected 1 to 64",
    ),
    Bad("pfns-over", PV_READY, entry(0, 2), RecordError, "2 pfns"),
    Bad("no-page", PV_READY, entry(5), RecordError, "1 pfns need 4112 bytes, body has 16"),
    Bad("reserved-bits", PV_READY, entry(1 << 52), RecordError, "bits 59-52 zero", 16),
    Bad("type-5", PV_READY, entry(5 << 60), RecordError, "a page type", 16),
    Bad("type-8", PV_READY, entry(8 << 60), RecordError, "a page type", 16),
    Bad("pv-pfn", PV_READY, entry(64 | 0xE << 60), RecordError, "a pfn below 0x40", 16),
    Bad("hvm-pfn", HVM_READY, entry(1 << 32 | 0xE << 60), RecordError, "below 0x100000000", 16),
    Bad("width", headers(1), record(2, b"\x08\x03" + bytes(6)), RecordError, "levels 3"),
    Bad("pv-info-length", headers(1), record(2, bytes(7)), RecordError, "7 bytes, expected 8"),
    Bad("p2m-order", PV_HEAD, p2m_frames(9, 8, 1), RecordError, "pfns 0x9 to 0x8"),
    Bad("p2m-count", PV_HEAD, p2m_frames(0, 511, 1, 2), RecordError, "24 bytes, expected 16"),
    Bad("p2m-frame", PV_HEAD, p2m_frames(0, 63, 64), RecordError, "pfn 0x40, expected below"),
    Bad("vcpu-id", PV_READY, modern.vcpu(4, 4096, CONTEXT_64), RecordError, "vcpu 4096"),
    Bad("basic", PV_READY, modern.vcpu(4, 0, CONTEXT_32), RecordError, "2800 bytes, expected"),
    Bad("extended", PV_READY, modern.vcpu(5, 0, bytes(129)), RecordError, "129 bytes"),
    Bad("xsave", PV_READY, modern.vcpu(6, 0, bytes(15)), RecordError, "15 bytes"),
    Bad("msrs", PV_READY, modern.vcpu(12, 0, bytes(17)), RecordError, "17 bytes"),
    Bad("shared-info", PV_READY, record(7, bytes(4095)), RecordError, "4095 bytes"),
    Bad("tsc", PV_READY, record(8, bytes(20)), RecordError, "20 bytes, expected 24"),
    Bad("tsc-reserved", PV_READY, record(8, bytes(23) + b"\1"), RecordError, "reserved"),
    Bad("hvm-context", HVM_READY, record(9), RecordError, "no bytes"),
    Bad("hvm-params", HVM_READY, record(10, b"\2" + bytes(23)), RecordError, "expected 40"),
    Bad("cpuid", headers(2), record(17, bytes(25)), RecordError, "multiple of 24"),
    Bad("msr", headers(2), record(18), RecordError, "multiple of 16"),
    Bad("v2-static-end", V2_HVM, record(16), RecordError, "not in version 2"),
    Bad("v2-cpuid", V2_HVM, record(17, bytes(24)), RecordError, "not in version 2"),
    Bad("long", HVM_READY, record(9, bytes(65)), RecordError, "65 bytes, expected at most 64"),
    Bad("hvm-record-in-pv", PV_READY, record(9, b"c"), RecordOrderError, "HvmContext"),
    Bad("pv-record-in-hvm", HVM_READY, record(7, SHARED), RecordOrderError, "SharedInfo"),
    Bad("no-pv-info", headers(1), record(16), RecordOrderError, "StaticDataEnd"),
    Bad("no-static-end", headers(2), page_data([Entry(0, 0xE)]), RecordOrderError, "Pages"),
    Bad("no-p2m", PV_HEAD, page_data([Entry(0, 0xE)]), RecordOrderError, "Pages"),
    Bad("pv-info-twice", headers(1) + pv_info(), pv_info(), RecordOrderError, "PvInfo"),
]


class Untouched(Recorder):
    """A guest whose memory nobody may ask for."""

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        raise AssertionError(f"asked for {len(batch)} pages")


@pytest.mark.parametrize("bad", BAD, ids=attrgetter("id"))
def test_refused(bad: Bad) -> None:
    limits = StreamLimits(hvm_context_bytes=64)
    with pytest.raises(StreamError) as caught:
        drive_bytes(libxc.decode(limits=limits), bad.before + bad.wire + bytes(4096), Untouched())
    assert type(caught.value) is bad.error
    assert bad.text in str(caught.value)
    assert caught.value.offset == len(bad.before) + bad.at


def test_other_guest_type_than_the_configuration_says() -> None:
    with pytest.raises(RecordError, match=r"domain type 2 \(hvm\), expected pv"):
        drive_bytes(decode_body(GuestType.PV), headers(modern.HVM), Recorder())


def test_optional_record_is_skipped() -> None:
    wire = HVM_READY + record(1 << 31 | 7, bytes(13)) + record(0)
    assert decode(wire).records[-1] == End()


def test_empty_blobs_and_lists_say_nothing() -> None:
    wire = PV_READY + modern.vcpu(5, 0, b"") + modern.vcpu(6, 0, b"") + record(0)
    assert not any(isinstance(item, VcpuContext) for item in decode(wire).records)
    assert decode(HVM_READY + modern.hvm_params() + record(0)).records[-2:] == [
        StaticDataEnd(),
        End(),
    ]


def test_batches_of_other_senders_may_be_larger() -> None:
    items = [Entry(pfn, 0xE) for pfn in range(5000)]
    assert len(decode(HVM_READY + page_data(items) + record(0)).types) == 5000


def test_larger_batches_are_taken_in_pieces() -> None:
    class Watched(Recorder):
        asked: ClassVar[list[int]] = []

        def populate(self, batch: PageBatch) -> Sequence[memoryview]:
            self.asked.append(len(batch))
            return super().populate(batch)

    items = [
        Entry(pfn, 0xE if pfn % 3 else 0, b"" if pfn % 3 else bytes([pfn % 251]) * 4096)
        for pfn in range(2500)
    ]
    wire, guest = HVM_READY + page_data(items) + record(0), Watched()
    drive_bytes(libxc.decode(), wire, guest)
    assert guest.asked == [1024, 1024, 452]
    assert guest.types == {item.pfn: item.type for item in items}
    assert guest.memory == {item.pfn: item.data for item in items if not item.type}


def test_legacy_records_find_their_form_or_none() -> None:
    info = PvInfo(guest_width=8, pt_levels=4)
    head: list[Record] = [start(GuestType.PV, 3), info]
    frames = P2mFrames(0, 63, np.array([4], np.uint64))
    unmapped = UnmappedPfns(np.arange(1500, dtype=np.uint64))
    silent: list[Record] = [Ending(), OnlineVcpus(0, (0,)), LastCheckpoint()]
    wire = encode([*head, frames, *silent, unmapped, End()], GuestType.PV)
    gone = [Entry(pfn, 0xF) for pfn in range(1500)]
    assert wire == PV_READY + page_data(gone[:1024]) + page_data(gone[1024:]) + record(0)


REFUSED = [
    ("toolstack", 3, Toolstack(b"")),
    ("checkpoint", 3, Checkpoint()),
    ("emulator", 3, EmulatorContext(EmulatorSignature.V2, b"")),
    ("cpuid-v2", 2, CpuidPolicy(bytes(24))),
    ("pinned-notab", 3, pages([0], [8], A)),
    ("pfn", 3, pages([1 << 52], [0], A)),
]


@pytest.mark.parametrize(
    ("version", "item"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused_by_name(version: int, item: Record) -> None:
    with pytest.raises(UnsupportedStream):
        encode([start(GuestType.HVM, version), item], GuestType.HVM, version)


u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
KINDS = [0, 1, 2, 3, 4, 9, 0xA, 0xB, 0xC, 0xD, 0xE, 0xF]


@st.composite
def batches(draw: st.DrawFn, nr_pages: int) -> Pages:
    pfns = draw(st.lists(st.integers(0, nr_pages - 1), min_size=1, max_size=12, unique=True))
    types = draw(st.lists(st.sampled_from(KINDS), min_size=len(pfns), max_size=len(pfns)))
    batch = PageBatch(np.array(pfns, np.uint64), np.array(types, np.uint8))
    content = bytes([draw(st.integers(0, 255))]) * 4096
    return Pages(batch, [memoryview(content)] * len(batch.with_data()))


@st.composite
def streams(draw: st.DrawFn) -> list[Record]:
    width, last = draw(st.sampled_from([4, 8])), draw(st.integers(0, 3000))
    count = last // (4096 // width) + 1
    pfns = st.lists(st.integers(0, last), min_size=count, max_size=count)
    tsc = TscInfo(mode=draw(u32), khz=draw(u32), nsec=draw(u64), incarnation=draw(u32))
    context = CONTEXT_64 if width == 8 else CONTEXT_32
    return [
        start(GuestType.PV, 3),
        PvInfo(guest_width=width, pt_levels={8: 4, 4: 3}[width]),
        CpuidPolicy(draw(st.binary(min_size=24, max_size=24))),
        StaticDataEnd(),
        P2mFrames(0, last, np.array(draw(pfns), np.uint64)),
        *draw(st.lists(batches(last + 1), max_size=5)),
        tsc,
        SharedInfo(SHARED),
        VcpuContext(draw(st.integers(0, 4095)), VcpuContextKind.BASIC, context),
        VcpuContext(7, VcpuContextKind.EXTENDED, draw(st.binary(min_size=1, max_size=128))),
        End(),
    ]


@settings(max_examples=40)
@given(streams())
def test_any_stream_round_trips(records: list[Record]) -> None:
    recorder = decode(encode(records, GuestType.PV))
    assert recorder.plain() == [plain(item) for item in records]
