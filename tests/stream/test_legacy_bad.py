"""Legacy images that no sender makes: what is found is said, and no memory is touched."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import pytest

from tests import streams
from tests.drive import Recorder, drive_bytes
from tests.streams import Entry, batch, chunk, ext_info, hvm_value, p2m_frames, pv_tail, ul
from xendpy.errors import RecordError, RecordOrderError, StreamError, UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import PageBatch
from xendpy.stream.limits import StreamLimits
from xendpy.stream.xend import decode_body

PAGE = bytes(4096)
HEAD = ul(8, 8) + ext_info(8, xcnt=24) + p2m_frames(8, 8)  # 8 pages, xsave announced
HVM_HEAD = ul(8, 8)
END = len(HEAD)
VCPUS = streams.vcpu_info(0, [0])
SMALL = StreamLimits(
    ext_info_bytes=5200,
    xsave_bytes=64,
    max_vcpu_id=100,
    toolstack_bytes=16,
    hvm_context_bytes=64,
    device_model_bytes=100,
)


def marker(number: int) -> bytes:
    return struct.pack("<i", number)


def words(*values: int) -> bytes:
    return marker(len(values)) + ul(8, *values)


@dataclass(frozen=True)
class Bad:
    id: str
    wire: bytes
    error: type[StreamError]
    offset: int
    text: str
    guest: str = "pv"


def _ext(blocks: bytes) -> bytes:
    return ul(8, 8, (1 << 64) - 1) + struct.pack("<I", len(blocks)) + blocks


BAD = [
    # the head
    Bad("p2m-zero", ul(8, 0, 0), RecordError, 0, "0x0 pages, expected 0x1 to 0x10000000"),
    Bad("p2m-2^28+1", ul(8, (1 << 28) + 1), RecordError, 0, "0x10000001 pages"),
    Bad("ext-info-long", ul(8, 8, (1 << 64) - 1) + struct.pack("<I", 5201), RecordError, 8,
        "5201 bytes, expected at most 5200"),
    Bad("ext-info-no-vcpu", _ext(b"extv" + bytes(4)), RecordError, 20, "no vcpu block"),
    Bad("ext-info-leftover", _ext(b"extv" + bytes(5)), RecordError, 28, "1 bytes are left over"),
    Bad("ext-info-overrun", _ext(b"zzzz" + struct.pack("<I", 9) + bytes(8)), RecordError, 20,
        "9 bytes, expected at most 8"),
    Bad("vcpu-size", _ext(b"vcpu" + struct.pack("<I", 4) + bytes(4)), RecordError, 20,
        "4 bytes, expected 5168 or 2800"),
    Bad("xcnt-size", _ext(b"xcnt" + struct.pack("<I", 2) + bytes(2)), RecordError, 20,
        "2 bytes, expected 4"),
    Bad("xcnt-below-header", ul(8, 8) + ext_info(8, xcnt=15), RecordError, 20 + 5176 + 8,
        "15 bytes a vcpu, expected 16 to 64"),
    Bad("xcnt-huge", ul(8, 8) + ext_info(8, xcnt=65), RecordError, 20 + 5176 + 8, "65 bytes"),
    Bad("p2m-frame-high", ul(8, 1024) + ul(8, 5, 1024), RecordError, 16,
        "frame 1 is pfn 0x400, expected below 0x400"),
    Bad("ia64", ul(8, 4096, 3, 0), UnsupportedStream, 8, "ia64"),
    # batches
    Bad("batch-1025", HEAD + marker(1025), RecordError, END, "1025 entries, expected 1 to 1024"),
    Bad("pfn-at-p2m-size", HEAD + words(0, 8), RecordError, END + 12,
        "entry 1 of 2 is 0x8, expected a pfn below 0x8"),
    Bad("type-5", HEAD + words(0x50000001), RecordError, END + 4, "0x50000001"),
    Bad("type-6", HEAD + words(0x60000001), RecordError, END + 4, "0x60000001"),
    Bad("type-7", HEAD + words(0, 1, 0x70000002), RecordError, END + 20, "entry 2 of 3"),
    Bad("upper-bits", HEAD + words(1 << 32), RecordError, END + 4, "upper 32 bits"),
    Bad("sign-without-bit-31", HEAD + words(0xFFFFFFFF_40000001), RecordError, END + 4,
        "upper 32 bits"),
    Bad("half-sign", HEAD + words(0x7FFFFFFF_C0000001), RecordError, END + 4, "upper 32 bits"),
    Bad("duplicate", HEAD + words(3, 4, 3), RecordError, END + 4, "pfn 0x3 comes twice"),
    Bad("duplicate-of-other-type", HEAD + words(3, 0x90000003), RecordError, END + 4, "0x3"),
    # control chunks
    Bad("unknown-chunk", HEAD + marker(-21), RecordError, END, "marker -21, expected"),
    Bad("tmem", HEAD + chunk(-5), UnsupportedStream, END, "tmem"),
    Bad("tmem-extra", HEAD + chunk(-6), UnsupportedStream, END, "tmem"),
    Bad("compressed", HEAD + chunk(-12), UnsupportedStream, END, "Remus page compression"),
    Bad("compression", HEAD + chunk(-13), UnsupportedStream, END, "checkpointed"),
    Bad("vcpu-id-negative", HEAD + chunk(-2, marker(-1)), RecordError, END, "id -1, expected"),
    Bad("vcpu-id-high", HEAD + chunk(-2, marker(101)), RecordError, END, "0 to 100"),
    Bad("no-vcpu", HEAD + chunk(-2, bytes(12)), RecordError, END, "online map 0x0"),
    Bad("vcpu-above-highest", HEAD + streams.vcpu_info(0, [0, 1]), RecordError, END,
        "online map 0x3, expected vcpus 0 to 0"),
    Bad("vcpu-info-twice", HEAD + VCPUS + VCPUS, RecordOrderError, END + 16, "OnlineVcpus"),
    Bad("verify-twice", HEAD + marker(-1) * 2, RecordOrderError, END + 4, "Verify"),
    Bad("hvm-param-in-pv", HEAD + hvm_value(-3, 1), RecordOrderError, END, "HvmParams"),
    Bad("toolstack-in-pv", HEAD + chunk(-18, bytes(4)), RecordOrderError, END, "Toolstack"),
    Bad("hvm-param-twice", HVM_HEAD + hvm_value(-3, 1) * 2, RecordOrderError, 24,
        "HVM_IDENT_PT", "hvm"),
    Bad("toolstack-long", HVM_HEAD + chunk(-18, struct.pack("<I", 17)), RecordError, 8,
        "17 bytes, expected at most 16", "hvm"),
    # tails
    Bad("unmapped-many", HEAD + marker(0) + struct.pack("<I", 9), RecordError, END + 4,
        "9 entries, expected at most 8"),
    Bad("unmapped-high", HEAD + marker(0) + pv_tail([], 8, unmapped=[0, 8]), RecordError,
        END + 16, "entry 1 is 0x8, expected a pfn below 0x8"),
    Bad("xsave-size", HEAD + marker(0) + pv_tail([0], 8, xcnt=25), RecordError,
        END + 8 + 5168 + 128, "9 bytes, expected 8"),
    Bad("hvm-context-empty", HVM_HEAD + marker(0) + bytes(28), RecordError, 36,
        "0 bytes, expected 1 to 64", "hvm"),
    Bad("hvm-context-long", HVM_HEAD + marker(0) + streams.hvm_tail(context=bytes(65)),
        RecordError, 36, "65 bytes, expected 1 to 64", "hvm"),
    Bad("device-model-unknown",
        HVM_HEAD + marker(0) + streams.hvm_tail(context=b"c", device_model=b"X" * 21),
        RecordError, 41, "not a valid device model state: found 'XXXXXXXXXXXXXXXXXXXXX'", "hvm"),
    Bad("device-model-not-qemu",
        HVM_HEAD + marker(0) + streams.hvm_tail(
            context=b"c", device_model=streams.qemu_record(b"QEMU....")),
        RecordError, 62, "begins with 'QEMU', expected 'QEVM'", "hvm"),
    Bad("device-model-long",
        HVM_HEAD + marker(0) + streams.hvm_tail(
            context=b"c", device_model=streams.qemu_record(bytes(101), b"DeviceModelRecord0002")),
        RecordError, 62, "101 bytes, expected 1 to 100", "hvm"),
]  # fmt: skip


class Untouched(Recorder):
    """A guest whose memory nobody may ask for."""

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        raise AssertionError(f"asked for {len(batch)} pages")


@pytest.mark.parametrize("bad", BAD, ids=attrgetter("id"))
def test_refused(bad: Bad) -> None:
    with pytest.raises(StreamError) as caught:
        # Bytes behind the fault: it must be told from what is there, not from an end.
        steps = decode_body(GuestType(bad.guest), SMALL)
        drive_bytes(steps, bad.wire + bytes(64), Untouched())
    error = caught.value
    assert type(error) is bad.error
    assert error.offset == bad.offset
    assert bad.text in str(error)


def test_one_bad_entry_among_1024_is_named() -> None:
    items = [*(Entry(pfn, streams.XALLOC) for pfn in range(1023)), Entry(1024, 0xE)]
    wire = ul(8, 1024) + batch(items)
    with pytest.raises(RecordError, match="entry 1023 of 1024 is 0xe0000400") as caught:
        drive_bytes(decode_body(GuestType.HVM), wire, Untouched())
    assert caught.value.offset == 8 + 4 + 1023 * 8
    assert caught.value.record == "page batch"


def test_order_error_names_what_may_come() -> None:
    with pytest.raises(RecordOrderError) as caught:
        drive_bytes(decode_body(GuestType.PV), HEAD + hvm_value(-3, 1), Recorder())
    assert caught.value.state == "memory"
    assert "OnlineVcpus" in caught.value.allowed
    assert "HvmParams" not in caught.value.allowed
