"""What a dialect can carry, and what it refuses by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import streams
from tests.drive import Recorder, drive_bytes, plain
from xendpy.errors import UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import HAS_DATA, PageBatch
from xendpy.stream.legacy_dialect import DIALECTS
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.records import (
    Checkpoint,
    CpuidPolicy,
    EmulatorContext,
    EmulatorSignature,
    EmulatorXenstore,
    End,
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
)
from xendpy.stream.xend import decode_body

TSC = TscInfo(mode=0, khz=1, nsec=2, incarnation=3)
NONE = UnmappedPfns(np.zeros(0, np.uint64))


def start(guest: GuestType, p2m_size: int = 64) -> StreamStart:
    return StreamStart(guest_type=guest, format="", tool_width=8, p2m_size=p2m_size)


def pages(pfns: list[int], kind: int = 0) -> Pages:
    types = np.full(len(pfns), kind, np.uint8)
    body = [memoryview(bytes(4096 * len(pfns)))] if HAS_DATA[kind] else []
    return Pages(PageBatch(np.array(pfns, np.uint64), types), body)


def pv(**values: Any) -> list[Record]:
    info = PvInfo(**{"guest_width": 8, "pt_levels": 4, **values})
    return [start(GuestType.PV), info, P2mFrames(0, 63, np.array([1], np.uint64))]


HVM = [start(GuestType.HVM)]
REFUSED = [
    ("3.0-hvm", "3.0", HVM, "a HVM guest in a stream for Xen 3.0"),
    ("3.0-large", "3.0", [start(GuestType.PV, (1 << 24) + 1)], "a guest of 0x1000001 pages"),
    ("3.0-smp", "3.0", [*pv(), OnlineVcpus(1, (0, 1))], "vcpu 1 in a stream for Xen 3.0"),
    ("3.1-mixed-widths", "3.1", pv(guest_width=4, pt_levels=3), "a 32-bit guest of 64-bit tools"),
    ("3.1-extended", "3.1", pv(extended=True), "the extended vcpu context"),
    ("4.0-xsave", "4.0", pv(xsave_bytes=24), "xsave state"),
    ("3.4-tsc", "3.4", [*pv(), TSC], "TSC_INFO in a stream for Xen 3.4"),
    ("4.1-vcpu-64", "4.1", [*pv(), OnlineVcpus(64, (0,))], "vcpu 64 in a stream for Xen 4.1"),
    ("4.1-xalloc", "4.1", [*HVM, pages([3], 0xE)], "page type XALLOC in a stream for Xen 4.1"),
    ("4.2-broken", "4.2", [*HVM, pages([3], 0xD)], "page type BROKEN in a stream for Xen 4.2"),
    ("high-pfn", "4.4", [*HVM, pages([1 << 28])], "pfn 0x10000000 in a legacy stream"),
    ("3.2-ident-pt", "3.2", [*HVM, HvmParams(((12, 1),))], "HVM parameter 12"),
    ("x87-fip-width", "4.4", [*HVM, HvmParams(((36, 1),))], "HVM parameter 36"),
    ("4.1-toolstack", "4.1", [*HVM, Toolstack(b"")], "TOOLSTACK in a stream for Xen 4.1"),
    ("emulator-xenstore", "4.4", [*HVM, EmulatorXenstore(2, 0, b"")], "xenstore data"),
    ("cpuid", "4.4", [*HVM, CpuidPolicy(b"")], "a CPUID policy"),
    ("msr", "4.4", [*HVM, MsrPolicy(b"")], "a MSR policy"),
    ("checkpoint", "4.4", [*HVM, Checkpoint()], "a checkpoint"),
    ("no-device-model", "4.4", [*HVM, HvmContext(b"c"), End()], "without device-model state"),
    (
        "msrs",
        "4.4",
        [*pv(), NONE, VcpuContext(0, VcpuContextKind.MSRS, bytes(16))],
        "a vcpu's MSRs",
    ),
]


FROM_32 = StreamStart(guest_type=GuestType.PV, format="", tool_width=4, p2m_size=64)
ASKS = "a stream for Xen 3.1 (tools 32 is for receivers of 32 bits"
REFUSED_BY_WIDTH = [
    ("narrow", 8, pv(guest_width=4, pt_levels=3), f"a 32-bit guest of 64-bit tools in {ASKS})"),
    (
        "narrow-from-narrow",
        8,
        [FROM_32, *pv(guest_width=4, pt_levels=3)[1:]],
        f"a 32-bit guest of 64-bit tools in {ASKS}, as its sender was)",
    ),
    ("wide", 4, pv(), "a 64-bit guest of 32-bit tools in a stream for Xen 3.1"),
]


@pytest.mark.parametrize(
    ("width", "records", "text"),
    [row[1:] for row in REFUSED_BY_WIDTH],
    ids=[row[0] for row in REFUSED_BY_WIDTH],
)
def test_guest_of_another_width_is_refused_before_its_pages(
    width: int, records: list[Record], text: str
) -> None:
    encoder = LegacyEncoder(DIALECTS["3.1"], GuestType.PV, width)
    list(encoder.encode(records[0]))
    with pytest.raises(UnsupportedStream) as caught:
        list(encoder.encode(records[1]))
    assert caught.value.feature == text


def test_toolstack_s_structures_are_not_for_narrower_tools() -> None:
    encoder = LegacyEncoder(DIALECTS["4.2"], GuestType.HVM, 4)
    list(encoder.encode(start(GuestType.HVM)))
    with pytest.raises(UnsupportedStream, match="TOOLSTACK of 64-bit tools"):
        list(encoder.encode(Toolstack(b"")))


@pytest.mark.parametrize(
    ("release", "guest_width"), [("3.0", 4), ("3.1", 4), ("3.2", 8), ("4.4", 4)]
)
def test_golden_head_of_32_bit_tools(release: str, guest_width: int) -> None:
    encoder = LegacyEncoder(DIALECTS[release], GuestType.PV, 4)
    info = PvInfo(guest_width=guest_width, pt_levels={4: 3, 8: 4}[guest_width])
    records = [FROM_32, info, P2mFrames(0, 63, np.array([5], np.uint64)), pages([7], 0x9)]
    wire = b"".join(piece for record in records for piece in encoder.encode(record))
    old = release in ("3.0", "3.1")
    ext = b"" if old else streams.ext_info(guest_width, width=4, extv=False)
    head, tail = bytes.fromhex("40000000"), bytes.fromhex("05000000 01000000 07000090")
    assert wire == head + ext + tail + bytes(4096)


@pytest.mark.parametrize(
    ("release", "records", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused_by_name(release: str, records: list[Record], text: str) -> None:
    guest = records[0].guest_type  # type: ignore[union-attr]
    with pytest.raises(UnsupportedStream) as caught:
        encoder = LegacyEncoder(DIALECTS[release], guest)
        for record in records:
            b"".join(encoder.encode(record))
    assert text in caught.value.feature


MISUSED = [
    ("out-of-order", [*pv(), SharedInfo(bytes(4096))]),
    ("no-context", [*pv(), NONE, SharedInfo(bytes(4096))]),
    ("context-missing", [*pv(), OnlineVcpus(1, (0, 1)), NONE,
                         VcpuContext(0, VcpuContextKind.BASIC, bytes(5168)),
                         SharedInfo(bytes(4096))]),
    ("context-of-other-vcpu", [*pv(), NONE, VcpuContext(1, VcpuContextKind.BASIC, bytes(5168))]),
    ("context-size", [*pv(), NONE, VcpuContext(0, VcpuContextKind.BASIC, bytes(2800))]),
    ("views-short", [*pv(), Pages(pages([1, 2]).batch, [memoryview(bytes(4096))])]),
    ("views-long", [*pv(), Pages(pages([1]).batch, [memoryview(bytes(8192))])]),
]  # fmt: skip


@pytest.mark.parametrize("records", [row[1] for row in MISUSED], ids=[row[0] for row in MISUSED])
def test_misuse_is_our_own_fault(records: list[Record]) -> None:
    encoder = LegacyEncoder(DIALECTS["4.4"], GuestType.PV)
    with pytest.raises(AssertionError):
        for record in records:
            b"".join(encoder.encode(record))


@pytest.mark.parametrize("release", DIALECTS)
def test_last_checkpoint_is_sent_since_4_1_whatever_came(release: str) -> None:
    ends = []
    marks: list[list[Record]] = [[], [LastCheckpoint()]]
    for mark in marks:
        encoder = LegacyEncoder(DIALECTS[release], GuestType.PV)
        records: list[Record] = [*pv(), StaticDataEnd(), *mark, NONE]
        ends.append(b"".join(piece for record in records for piece in encoder.encode(record)))
    assert ends[0] == ends[1]
    assert ends[0].endswith(b"\xf7\xff\xff\xff" + bytes(8)) == (
        DIALECTS[release].version >= (4, 1)
    )


@pytest.mark.parametrize("release", ["3.2", "4.4"])
def test_ext_info_is_zero_filled_when_none_was_received(release: str) -> None:
    encoder = LegacyEncoder(DIALECTS[release], GuestType.PV)
    wire = b"".join(piece for record in pv() for piece in encoder.encode(record))
    assert wire[8:] == streams.ext_info(8, extv=False) + streams.ul(8, 1)


def test_pages_are_views_of_what_was_given() -> None:
    memory = bytearray(4096 * 3)
    batch = PageBatch(np.array([1, 2, 9], np.uint64), np.zeros(3, np.uint8))
    view = memoryview(memory)
    encoder = LegacyEncoder(DIALECTS["4.4"], GuestType.HVM)
    list(encoder.encode(start(GuestType.HVM)))
    header, *pieces = encoder.encode(Pages(batch, [view[:8192], view[8192:]]))
    assert len(header) == 4 + 3 * 8
    memory[0], memory[8192] = 1, 2
    assert [piece[0] for piece in pieces] == [1, 2]
    assert all(isinstance(piece, memoryview) and piece.obj is memory for piece in pieces)


def test_large_batch_is_split_and_xtab_left_out() -> None:
    pfns = np.arange(3000, dtype=np.uint64)
    types = np.zeros(3000, np.uint8)
    types[[0, 1500]] = 0xF
    body = np.repeat(np.arange(2998) % 251, 4096).astype(np.uint8).tobytes()
    record = Pages(PageBatch(pfns, types), [memoryview(body)[:10], memoryview(body)[10:]])
    encoder = LegacyEncoder(DIALECTS["4.4"], GuestType.HVM)
    wire = b"".join(encoder.encode(start(GuestType.HVM, 3000)))
    wire += b"".join(encoder.encode(record)) + streams.chunk(0) + streams.hvm_tail()
    recorder = Recorder()
    drive_bytes(decode_body(GuestType.HVM), wire, recorder)
    sizes = [len(r.batch) for r in recorder.records if isinstance(r, Pages)]
    assert sizes == [1024, 1024, 950]
    assert b"".join(recorder.memory[pfn] for pfn in sorted(recorder.memory)) == body


def test_newer_device_model_signature_becomes_xends_in_older_dialects() -> None:
    encoder = LegacyEncoder(DIALECTS["4.0"], GuestType.HVM)
    model = EmulatorContext(EmulatorSignature.LIBXL, b"QEVM")
    records: list[Record] = [*HVM, HvmContext(b"c"), model]
    wire = b"".join(piece for record in records for piece in encoder.encode(record))
    assert wire.endswith(b"QemuDeviceModelRecordQEVM")


# Whole streams at random: what is encoded decodes to the same.

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
DATA_TYPES = [0, 1, 2, 3, 4, 8, 9, 0xA, 0xB, 0xC]


@st.composite
def batches(draw: st.DrawFn, p2m_size: int) -> Pages:
    pfns = draw(st.lists(st.integers(0, p2m_size - 1), min_size=1, max_size=12, unique=True))
    kinds = st.sampled_from([*DATA_TYPES, 0xD, 0xE])
    types = draw(st.lists(kinds, min_size=len(pfns), max_size=len(pfns)))
    batch = PageBatch(np.array(pfns, np.uint64), np.array(types, np.uint8))
    seed = draw(st.integers(0, 255))
    return Pages(batch, [memoryview(bytes([seed]) * 4096)] * len(batch.with_data()))


@st.composite
def pv_records(draw: st.DrawFn, width: int) -> list[Record]:
    p2m_size = draw(st.integers(1, 3000))
    guest_width = draw(st.sampled_from([4, 8]))
    size = streams.CONTEXT_BYTES[guest_width]
    count = -(-p2m_size * guest_width // 4096)
    pfns = st.lists(st.integers(0, p2m_size - 1), min_size=count, max_size=count)
    xsave = draw(st.none() | st.integers(16, 600))
    extended = draw(st.booleans())
    highest = draw(st.integers(0, 200))
    ids = tuple(sorted(draw(st.sets(st.integers(0, highest), min_size=1, max_size=3))))
    unmapped = sorted(draw(st.sets(st.integers(0, p2m_size - 1), max_size=5)))
    records: list[Record] = [
        StreamStart(
            guest_type=GuestType.PV, format="libxc-v1", tool_width=width, p2m_size=p2m_size
        ),
        PvInfo(
            guest_width=guest_width,
            pt_levels={8: 4, 4: 3}[guest_width],
            context=draw(st.binary(min_size=8, max_size=8)) * (size // 8),
            extended=extended,
            xsave_bytes=xsave,
        ),
        P2mFrames(0, p2m_size - 1, np.array(draw(pfns), np.uint64)),
        *draw(st.lists(batches(p2m_size), max_size=4)),
        TscInfo(mode=draw(u32), khz=draw(u32), nsec=draw(u64), incarnation=draw(u32)),
        *draw(st.lists(batches(p2m_size), max_size=2)),
        OnlineVcpus(highest, ids),
        LastCheckpoint(),
        UnmappedPfns(np.array(unmapped, np.uint64)),
    ]
    for vcpu in ids:
        records.append(VcpuContext(vcpu, VcpuContextKind.BASIC, bytes([vcpu]) * size))
        if extended:
            records.append(VcpuContext(vcpu, VcpuContextKind.EXTENDED, bytes([vcpu]) * 128))
        if xsave is not None:
            blob = bytes([vcpu]) * (xsave - 16)
            records.append(VcpuContext(vcpu, VcpuContextKind.XSAVE, blob, draw(u64)))
    return [*records, SharedInfo(draw(st.binary(min_size=16, max_size=16)) * 256), End()]


@st.composite
def hvm_records(draw: st.DrawFn, width: int) -> list[Record]:
    p2m_size = draw(st.integers(1, 1 << 28))
    names = [9, 12, 15, 17, 19, 27, 28, 29, 32, 33, 34]
    params = draw(st.dictionaries(st.sampled_from(names), u64, min_size=1))
    toolstack = draw(st.lists(st.builds(Toolstack, st.binary(max_size=40)), max_size=1))
    signature = draw(st.sampled_from([*EmulatorSignature][:3]))
    return [
        StreamStart(
            guest_type=GuestType.HVM, format="libxc-v1", tool_width=width, p2m_size=p2m_size
        ),
        *draw(st.lists(batches(p2m_size), min_size=1, max_size=4)),
        *toolstack,
        LastCheckpoint(),
        HvmParams(tuple(params.items())),
        HvmParams(((5, draw(u64)), (6, draw(u64)), (1, draw(u64)))),
        HvmContext(draw(st.binary(min_size=1, max_size=99))),
        EmulatorContext(signature, b"QEVM" + draw(st.binary(max_size=99))),
        End(),
    ]


def round_trip(records: list[Record], width: int) -> None:
    guest = records[0].guest_type  # type: ignore[union-attr]
    encoder = LegacyEncoder(DIALECTS["4.5"], guest, width)
    wire = b"".join(piece for record in records for piece in encoder.encode(record))
    recorder = Recorder()
    _, taken = drive_bytes(decode_body(guest), wire, recorder)
    assert taken == len(wire)
    said = [value for value in recorder.plain() if value != ("Ending",)]
    assert said == [plain(record) for record in records]


@settings(max_examples=40)
@given(st.data(), st.sampled_from([4, 8]))
def test_any_pv_stream_round_trips(data: st.DataObject, width: int) -> None:
    round_trip(data.draw(pv_records(width)), width)


@settings(max_examples=40)
@given(st.data(), st.sampled_from([4, 8]))
def test_any_hvm_stream_round_trips(data: st.DataObject, width: int) -> None:
    round_trip(data.draw(hvm_records(width)), width)
