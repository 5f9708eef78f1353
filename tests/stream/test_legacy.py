"""Legacy images typed from the source of Xen's sender, in both directions."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import pytest

from tests import streams
from tests.drive import Recorder, drive_bytes, plain
from xendpy.errors import RecordError, StreamTruncated
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import PageBatch
from xendpy.stream.legacy_dialect import DIALECTS
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.records import (
    EmulatorContext,
    EmulatorSignature,
    End,
    Ending,
    HvmContext,
    HvmParams,
    LastCheckpoint,
    OnlineVcpus,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    SharedInfo,
    StreamStart,
    Toolstack,
    TscInfo,
    UnmappedPfns,
    VcpuContext,
    VcpuContextKind,
    Verify,
)
from xendpy.stream.steps import Steps, Take
from xendpy.stream.xend import decode_body

A, B = b"\xaa" * 4096, b"\xbb" * 4096
CONTEXT_64, CONTEXT_32 = bytes(range(16)) * 323, bytes(range(16)) * 175  # 5168 and 2800 bytes
PAE_CONTEXT = CONTEXT_32[:2796] + b"\x08\x00\x00\x00"  # vm_assist: pae_extended_cr3
EXTENDED = b"\xe0" * 128
SHARED = b"\x51" * 4096


def hexa(text: str) -> bytes:
    return bytes.fromhex(text)


def pages(pfns: Sequence[int], types: Sequence[int], *data: bytes) -> Pages:
    batch = PageBatch(np.array(pfns, np.uint64), np.array(types, np.uint8))
    return Pages(batch, [memoryview(b"".join(data))] if data else [])


def frames(last: int, *pfns: int) -> P2mFrames:
    return P2mFrames(0, last, np.array(pfns, np.uint64))


def unmapped(*pfns: int) -> UnmappedPfns:
    return UnmappedPfns(np.array(pfns, np.uint64))


@dataclass(frozen=True)
class Case:
    """A whole image; `wire` is cut into pieces only to be read."""

    id: str
    dialect: str
    guest_type: GuestType
    width: int
    records: list[Record]
    wire: list[bytes]


CASES = [
    Case(
        "4.4-pv64-live",
        "4.4",
        GuestType.PV,
        8,
        [
            StreamStart(guest_type=GuestType.PV, format="libxc-v1", tool_width=8, p2m_size=16),
            PvInfo(guest_width=8, pt_levels=4, context=CONTEXT_64, extended=True, xsave_bytes=24),
            frames(15, 3),
            pages([1, 2, 5], [0, 0x1, 0xC], A, B, A),
            Ending(),
            TscInfo(mode=2, khz=0x0A0B0C0D, nsec=0x1122334455667788, incarnation=9),
            pages([2, 6, 7], [0, 0xE, 0xD], B),
            OnlineVcpus(2, (0, 2)),
            LastCheckpoint(),
            unmapped(1, 9),
            VcpuContext(0, VcpuContextKind.BASIC, CONTEXT_64),
            VcpuContext(0, VcpuContextKind.EXTENDED, EXTENDED),
            VcpuContext(0, VcpuContextKind.XSAVE, b"xsave-0.", 7),
            VcpuContext(2, VcpuContextKind.BASIC, CONTEXT_64),
            VcpuContext(2, VcpuContextKind.EXTENDED, EXTENDED),
            VcpuContext(2, VcpuContextKind.XSAVE, b"xsave-2.", 3),
            SharedInfo(SHARED),
            End(),
        ],
        [
            hexa("1000000000000000"),  # p2m_size
            hexa("ffffffffffffffff 4c140000"),  # extended info, 5168 + 4 + 3 * 8 bytes
            b"vcpu" + hexa("30140000") + CONTEXT_64,
            b"extv" + hexa("00000000"),
            b"xcnt" + hexa("04000000 18000000"),
            hexa("0300000000000000"),  # p2m frame list: one page for 16 * 8 bytes
            hexa("03000000 0100000000000000 0200001000000000 050000c000000000") + A + B + A,
            hexa("f9ffffff 02000000 8877665544332211 0d0c0b0a 09000000"),  # TSC_INFO
            hexa("03000000 0200000000000000 060000e000000000 070000d000000000") + B,
            hexa("feffffff 02000000 0500000000000000"),  # VCPU_INFO: highest 2; 0 and 2 online
            hexa("f7ffffff 00000000"),  # LAST_CHECKPOINT, end of the body
            hexa("02000000 0100000000000000 0900000000000000"),  # unmapped pfns
            CONTEXT_64 + EXTENDED + hexa("0700000000000000 0800000000000000") + b"xsave-0.",
            CONTEXT_64 + EXTENDED + hexa("0300000000000000 0800000000000000") + b"xsave-2.",
            SHARED,
        ],
    ),
    Case(
        "4.0-pv32-of-32-bit-tools-nonlive",
        "4.0",
        GuestType.PV,
        4,
        [
            StreamStart(guest_type=GuestType.PV, format="libxc-v1", tool_width=4, p2m_size=0x401),
            PvInfo(guest_width=4, pt_levels=3, context=CONTEXT_32, extended=True),
            frames(0x400, 0x10, 0x400),
            TscInfo(mode=0, khz=1, nsec=2, incarnation=3),
            pages([0x400], [0xB], A),
            Ending(),
            OnlineVcpus(0, (0,)),
            unmapped(),
            VcpuContext(0, VcpuContextKind.BASIC, CONTEXT_32),
            VcpuContext(0, VcpuContextKind.EXTENDED, EXTENDED),
            SharedInfo(SHARED),
            End(),
        ],
        [
            hexa("01040000"),
            hexa("ffffffff 000b0000"),
            b"vcpu" + hexa("f00a0000") + CONTEXT_32 + b"extv" + hexa("00000000"),
            hexa("10000000 00040000"),
            hexa("f9ffffff 00000000 0200000000000000 01000000 03000000"),
            hexa("01000000 000400b0") + A,
            hexa("feffffff 00000000 0100000000000000 00000000 00000000"),
            CONTEXT_32 + EXTENDED + SHARED,
        ],
    ),
    Case(
        "3.1-pv64-without-ext-info-verified",
        "3.1",
        GuestType.PV,
        8,
        [
            StreamStart(guest_type=GuestType.PV, format="libxc-v1", tool_width=8, p2m_size=513),
            PvInfo(guest_width=8, pt_levels=4, has_ext_info=False),
            frames(512, 4, 5),
            pages([512, 0], [0x9, 0x4], A, B),
            Verify(),
            pages([0], [0x4], B),
            Ending(),
            OnlineVcpus(0, (0,)),
            unmapped(),
            VcpuContext(0, VcpuContextKind.BASIC, CONTEXT_64),
            SharedInfo(SHARED),
            End(),
        ],
        [
            hexa("0102000000000000"),
            hexa("0400000000000000 0500000000000000"),
            hexa("02000000 0002009000000000 0000004000000000") + A + B,
            hexa("ffffffff"),  # ENABLE_VERIFY_MODE
            hexa("01000000 0000004000000000") + B,
            hexa("feffffff 00000000 0100000000000000"),
            hexa("00000000 00000000"),
            CONTEXT_64 + SHARED,
        ],
    ),
    Case(
        "3.0-pv64-sign-extended",
        "3.0",
        GuestType.PV,
        8,
        [
            StreamStart(guest_type=GuestType.PV, format="libxc-v1", tool_width=8, p2m_size=9),
            PvInfo(guest_width=8, pt_levels=4, has_ext_info=False),
            frames(8, 4),
            pages([8, 1], [0xC, 0x1], A, B),
            Ending(),
            unmapped(3),
            VcpuContext(0, VcpuContextKind.BASIC, CONTEXT_64),
            SharedInfo(SHARED),
            End(),
        ],
        [
            hexa("0900000000000000 0400000000000000"),
            hexa("02000000 080000c0ffffffff 0100001000000000") + A + B,
            hexa("00000000"),
            hexa("01000000 0300000000000000"),
            CONTEXT_64 + SHARED,
        ],
    ),
    Case(
        "3.0-pv32-with-pae-extended-cr3",
        "3.0",
        GuestType.PV,
        4,
        [
            StreamStart(guest_type=GuestType.PV, format="libxc-v1", tool_width=4, p2m_size=9),
            PvInfo(guest_width=4, pt_levels=3, context=PAE_CONTEXT),
            frames(8, 4),
            pages([8], [0xB], A),
            Ending(),
            unmapped(),
            VcpuContext(0, VcpuContextKind.BASIC, PAE_CONTEXT),
            SharedInfo(SHARED),
            End(),
        ],
        [
            hexa("09000000 ffffffff f80a0000") + b"vcpu" + hexa("f00a0000") + PAE_CONTEXT,
            hexa("04000000"),
            hexa("01000000 080000b0") + A,
            hexa("00000000 00000000"),
            PAE_CONTEXT + SHARED,
        ],
    ),
    Case(
        "3.0-pv32-levels-unknown",
        "3.0",
        GuestType.PV,
        4,
        [
            StreamStart(guest_type=GuestType.PV, format="libxc-v1", tool_width=4, p2m_size=9),
            PvInfo(guest_width=4, pt_levels=0, has_ext_info=False),
            frames(8, 4),
            pages([8], [0xA], A),
            Ending(),
            unmapped(),
            VcpuContext(0, VcpuContextKind.BASIC, CONTEXT_32),
            SharedInfo(SHARED),
            End(),
        ],
        [
            hexa("09000000 04000000 01000000 080000a0") + A,
            hexa("00000000 00000000"),
            CONTEXT_32 + SHARED,
        ],
    ),
    Case(
        "4.4-hvm-live",
        "4.4",
        GuestType.HVM,
        8,
        [
            StreamStart(
                guest_type=GuestType.HVM, format="libxc-v1", tool_width=8, p2m_size=0x100000
            ),
            pages([0xFFFFF], [0], A),
            Ending(),
            TscInfo(mode=1, khz=2, nsec=3, incarnation=4),
            OnlineVcpus(64, (0, 64)),
            Toolstack(b"\x01\x00\x00\x00\x00\x00\x00\x00"),
            LastCheckpoint(),
            HvmParams(
                (
                    (34, 0xFC00),
                    (12, 0xFEFFE000),
                    (27, 1),
                    (28, 2),
                    (29, 3),
                    (15, 4),
                    (17, 5),
                    (19, 1),
                    (9, 7),
                )
            ),
            HvmParams(((5, 0xFEFFD), (6, 0xFEFFB), (1, 0xFEFFC))),
            HvmContext(b"context!"),
            EmulatorContext(EmulatorSignature.XEND, b"QEVM\0\0\0\3state"),
            End(),
        ],
        [
            hexa("0000100000000000"),
            hexa("01000000 ffff0f0000000000") + A,
            hexa("f9ffffff 01000000 0300000000000000 02000000 04000000"),
            hexa("feffffff 40000000 0100000000000000 0100000000000000"),
            hexa("f2ffffff 00000000 00fc000000000000"),  # GENERATION_ID_ADDR
            hexa("fdffffff 00000000 00e0fffe00000000"),  # IDENT_PT
            hexa("f1ffffff 00000000 0100000000000000"),  # PAGING_RING_PFN
            hexa("f0ffffff 00000000 0200000000000000"),  # ACCESS_RING_PFN
            hexa("efffffff 00000000 0300000000000000"),  # SHARING_RING_PFN
            hexa("fcffffff 00000000 0400000000000000"),  # VM86_TSS
            hexa("f8ffffff 00000000 0500000000000000"),  # CONSOLE_PFN
            hexa("f6ffffff 00000000 0100000000000000"),  # ACPI_IOPORTS_LOCATION
            hexa("f5ffffff 00000000 0700000000000000"),  # VIRIDIAN
            hexa("eeffffff 08000000 0100000000000000"),  # TOOLSTACK
            hexa("f7ffffff 00000000"),
            hexa("fdef0f0000000000 fbef0f0000000000 fcef0f0000000000"),  # ioreq, bufioreq, store
            hexa("08000000") + b"context!",
            b"QemuDeviceModelRecord" + b"QEVM\0\0\0\3state",
        ],
    ),
    Case(
        "4.5-hvm-of-32-bit-tools",
        "4.5",
        GuestType.HVM,
        4,
        [
            StreamStart(guest_type=GuestType.HVM, format="libxc-v1", tool_width=4, p2m_size=3),
            pages([2], [0], A),
            Ending(),
            LastCheckpoint(),
            HvmParams(((32, 0xFEFF0), (33, 8))),
            HvmParams(((5, 1), (6, 2), (1, 3))),
            HvmContext(b"c"),
            EmulatorContext(EmulatorSignature.LIBXL, b"state"),
            End(),
        ],
        [
            hexa("03000000 01000000 02000000") + A,
            hexa("edffffff 00000000 f0ef0f0000000000"),  # IOREQ_SERVER_PFN
            hexa("ecffffff 00000000 0800000000000000"),  # NR_IOREQ_SERVER_PAGES
            hexa("f7ffffff 00000000"),
            hexa("0100000000000000 0200000000000000 0300000000000000 01000000") + b"c",
            b"DeviceModelRecord0002" + hexa("05000000") + b"state",
        ],
    ),
    Case(
        "4.0-hvm-remus-device-model",
        "4.0",
        GuestType.HVM,
        8,
        [
            StreamStart(guest_type=GuestType.HVM, format="libxc-v1", tool_width=8, p2m_size=3),
            pages([0], [0], B),
            Ending(),
            HvmParams(((5, 1), (6, 2), (1, 3))),
            HvmContext(b"c"),
            EmulatorContext(EmulatorSignature.REMUS, b"s"),
            End(),
        ],
        [
            hexa("0300000000000000 01000000 0000000000000000") + B,
            hexa("00000000"),
            hexa("0100000000000000 0200000000000000 0300000000000000 01000000") + b"c",
            b"RemusDeviceModelState" + hexa("01000000") + b"s",
        ],
    ),
]
BY_ID = {case.id: case for case in CASES}
each_case = pytest.mark.parametrize("case", CASES, ids=attrgetter("id"))


def decode(wire: bytes, guest_type: GuestType) -> Recorder:
    recorder = Recorder()
    _, taken = drive_bytes(decode_body(guest_type), wire, recorder)
    assert taken == len(wire)
    return recorder


def encode(case: Case) -> bytes:
    encoder = LegacyEncoder(DIALECTS[case.dialect], case.guest_type, case.width)
    return b"".join(piece for record in case.records for piece in encoder.encode(record))


@each_case
def test_decode(case: Case) -> None:
    recorder = decode(b"".join(case.wire), case.guest_type)
    assert recorder.plain() == [plain(record) for record in case.records]


@each_case
def test_encode(case: Case) -> None:
    assert encode(case) == b"".join(case.wire)


# xend's own device-model record runs to the end of the stream by design.
BOUNDED = [case for case in CASES if case.id != "4.4-hvm-live"]


@pytest.mark.parametrize("case", BOUNDED, ids=attrgetter("id"))
def test_nothing_is_taken_beyond_the_image(case: Case) -> None:
    wire = b"".join(case.wire)
    _, taken = drive_bytes(decode_body(case.guest_type), wire + b"behind", Recorder())
    assert taken == len(wire)


@pytest.mark.parametrize("id", ["4.5-hvm-of-32-bit-tools", "3.0-pv32-levels-unknown"])
def test_truncated_at_every_offset_reports_it(id: str) -> None:
    wire = b"".join(BY_ID[id].wire)
    for cut in range(len(wire)):
        with pytest.raises(StreamTruncated) as caught:
            decode(wire[:cut], BY_ID[id].guest_type)
        error = caught.value
        assert error.offset is not None
        assert error.offset + error.got == cut
        assert error.got < error.wanted <= 4096


@each_case
def test_truncated_at_every_border_reports_it(case: Case) -> None:
    cut = 0
    for piece in case.wire[:-1]:
        cut += len(piece)
        with pytest.raises(StreamTruncated) as caught:
            decode(b"".join(case.wire)[:cut], case.guest_type)
        assert (caught.value.offset or 0) + caught.value.got == cut


def test_xend_device_model_is_truncated_before_its_magic_ends() -> None:
    wire = b"".join(BY_ID["4.4-hvm-live"].wire)
    end = wire.index(b"QEVM") + 4
    for cut in range(end - 25, end):
        with pytest.raises(StreamTruncated) as caught:
            decode(wire[:cut], GuestType.HVM)
        assert (caught.value.offset or 0) + caught.value.got == cut
    assert decode(wire[:end], GuestType.HVM).records[-2] == EmulatorContext(
        EmulatorSignature.XEND, b"QEVM"
    )


def test_xtab_entries_are_dropped_whatever_their_number() -> None:
    items = [
        streams.Entry(0, streams.XTAB),
        streams.Entry(3, streams.NOTAB, A),
        streams.Entry(0, streams.XTAB),
        streams.Entry(0xFFFFFFF, streams.XTAB),
    ]
    image = streams.pv_image([items], p2m_size=8)
    recorder = decode(image.wire, GuestType.PV)
    assert [plain(r) for r in recorder.records if isinstance(r, Pages)] == [("Pages", [3], [0], A)]


@pytest.mark.parametrize("sign_extended", [False, True])
def test_batch_of_xtab_alone_says_nothing(sign_extended: bool) -> None:
    nothing = [streams.Entry(0x1234, streams.XTAB)] * 3
    release = "3.0" if sign_extended else "3.4"
    image = streams.pv_image([nothing], release=release, p2m_size=8)
    recorder = decode(image.wire, GuestType.PV)
    assert not any(isinstance(record, Pages) for record in recorder.records)


def test_pages_without_data_are_populated_and_not_filled() -> None:
    image = streams.hvm_image(
        [[streams.Entry(5, streams.XALLOC), streams.Entry(6, streams.BROKEN)]]
    )
    recorder = decode(image.wire, GuestType.HVM)
    assert recorder.types == {5: 0xE, 6: 0xD}
    assert recorder.memory == {}


def test_unknown_ext_info_blocks_are_skipped() -> None:
    extra = [(b"zzzz", b"whatever")]
    wire = (
        streams.ul(8, 8)
        + streams.ext_info(8, extra=extra)
        + streams.p2m_frames(8, 8)
        + streams.chunk(0)
        + streams.pv_tail((0,), 8)
    )
    info = decode(wire, GuestType.PV).records[1]
    assert isinstance(info, PvInfo)
    assert info.extended


class Listed:
    """Keeps records alone, as they are."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def populate(self, batch: PageBatch) -> list[memoryview]:
        raise AssertionError(f"asked for {len(batch)} pages")

    def apply(self, record: Record) -> None:
        self.records.append(record)


def test_a_guest_far_below_its_p2m_size_is_taken_in_small_pieces() -> None:
    p2m_size = (1 << 24) + 64
    gone = np.arange(1, p2m_size, dtype="<u4")  # 64 GiB, ballooned out
    tail = streams.pv_tail((0,), 4, width=4)
    wire = (
        streams.ul(4, p2m_size)
        + streams.ext_info(4, width=4)
        + streams.p2m_frames(p2m_size, 4, width=4)
        + streams.chunk(0)
        + struct.pack("<I", len(gone))
        + gone.tobytes()
        + tail[4:]
    )
    largest, sink = 0, Listed()

    def watched() -> Steps[None]:
        nonlocal largest
        steps, answer = decode_body(GuestType.PV), None
        with contextlib.suppress(StopIteration):
            while True:
                step = steps.send(answer)
                largest = max(largest, step.count if isinstance(step, Take) else 0)
                answer = yield step

    _, taken = drive_bytes(watched(), wire, sink)
    assert taken == len(wire)
    (record,) = [item for item in sink.records if isinstance(item, UnmappedPfns)]
    assert np.array_equal(record.pfns, gone)
    assert largest <= 1 << 20


def test_an_unmapped_pfn_of_a_later_piece_is_named() -> None:
    p2m_size = 300_000
    gone = np.arange(p2m_size, dtype="<u8")
    gone[200_000] = p2m_size
    before = (
        streams.ul(8, p2m_size)
        + streams.ext_info(8)
        + streams.p2m_frames(p2m_size, 8)
        + streams.chunk(0)
        + struct.pack("<I", p2m_size)
    )
    with pytest.raises(
        RecordError, match="entry 200000 is 0x493e0, expected a pfn below 0x493e0"
    ) as caught:
        drive_bytes(decode_body(GuestType.PV), before + gone.tobytes(), Listed())
    assert caught.value.offset == len(before) + 8 * 200_000


@pytest.mark.parametrize("release", streams.RELEASES)
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("live", [False, True])
def test_pv_images_of_every_release(release: str, width: int, live: bool) -> None:
    last = streams.entries([2, 9], salt=1)
    rounds = [streams.entries(range(40)), *([last] if live else [])]
    mixed = streams.RELEASES[release].ext_info
    for guest_width in (4, 8) if mixed else (width,):
        image = streams.pv_image(
            rounds, release=release, width=width, guest_width=guest_width, batch_pages=16
        )
        recorder = decode(image.wire, GuestType.PV)
        assert recorder.memory == image.memory
        assert recorder.records[1].guest_width == guest_width  # type: ignore[union-attr]


@pytest.mark.parametrize("release", [name for name in streams.RELEASES if name != "3.0"])
@pytest.mark.parametrize("width", [4, 8])
def test_hvm_images_of_every_release(release: str, width: int) -> None:
    rounds = [streams.entries([0, 1, 0xFEFFF]), streams.entries([1], salt=1)]
    image = streams.hvm_image(rounds, release=release, width=width)
    recorder = decode(image.wire, GuestType.HVM)
    assert recorder.memory == image.memory


LIVE = [streams.entries(range(4)), streams.entries([1], salt=1)]
ENDINGS = [
    ("pv-live-tsc", streams.pv_image(LIVE), "pv", "TscInfo"),
    ("pv-nonlive", streams.pv_image(LIVE[:1]), "pv", "OnlineVcpus"),
    ("pv-live-3.4", streams.pv_image(LIVE, release="3.4"), "pv", "OnlineVcpus"),
    ("pv-3.0", streams.pv_image(LIVE, release="3.0"), "pv", "UnmappedPfns"),
    ("hvm-live", streams.hvm_image(LIVE), "hvm", "TscInfo"),
    ("hvm-3.1", streams.hvm_image(LIVE, release="3.1"), "hvm", "OnlineVcpus"),
]


@pytest.mark.parametrize(
    ("image", "kind", "after"), [row[1:] for row in ENDINGS], ids=[row[0] for row in ENDINGS]
)
def test_ending_comes_once_right_before_its_mark(
    image: streams.Image, kind: str, after: str
) -> None:
    names = [type(r).__name__ for r in decode(image.wire, GuestType(kind)).records]
    assert names.count("Ending") == 1
    assert names[names.index("Ending") + 1] == after
    # Its bytes, and none behind the marker, suffice.
    recorder = Recorder()
    with pytest.raises(StreamTruncated):
        drive_bytes(decode_body(GuestType(kind)), image.wire[: image.ending + 4], recorder)
    assert isinstance(recorder.records[-1], Ending)


def test_hvm_parameter_alone_is_the_ending() -> None:
    wire = streams.ul(8, 4) + streams.batch(streams.entries([0])) + struct.pack("<i", -3)
    recorder = Recorder()
    with pytest.raises(StreamTruncated):
        drive_bytes(decode_body(GuestType.HVM), wire, recorder)
    assert isinstance(recorder.records[-1], Ending)
