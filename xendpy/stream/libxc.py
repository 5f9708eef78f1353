"""Decode the libxc image v2 and v3, Xen 4.6 and later.

Source: docs/specs/libxc-migration-stream; xg_sr_restore.c for what a receiver lets through.
Version 2 has no STATIC_DATA_END: it is inferred before the first record that is not static.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xendpy.errors import RecordError, StreamError, UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import HAS_DATA, MAX_BATCH, PAGE_SIZE, PageBatch, Pfns
from xendpy.stream import libxc_bodies
from xendpy.stream.framing import OPTIONAL, RECORD_HEADER, read_body
from xendpy.stream.libxc_bodies import Image
from xendpy.stream.libxc_format import (
    DOMAIN_HEADER,
    DOMAIN_TYPES,
    IDENT,
    IMAGE_HEADER,
    MARKER,
    OPTION_BIG_ENDIAN,
    PAGE_DATA,
    PAGE_SHIFT,
    PFN_MASK,
    RESERVED_MASK,
    TYPE_SHIFT,
    UNSUPPORTED,
    VALID_TYPES,
    VERSIONS,
    RecordType,
)
from xendpy.stream.limits import DEFAULT_LIMITS, StreamLimits
from xendpy.stream.order import LIBXC, LIBXC_ONCE, RecordOrder
from xendpy.stream.records import (
    CpuidPolicy,
    End,
    HvmContext,
    HvmParams,
    MsrPolicy,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    SharedInfo,
    StaticDataEnd,
    StreamStart,
    TscInfo,
    VcpuContext,
    Verify,
)
from xendpy.stream.steps import MAX_RECORD, Fill, Passed, Steps, populate, take, tell, unpack

FORMAT = "libxc"
SKIP_BYTES = 1 << 20  # at a time, of an optional record


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one type of record is read: what it is, from which version on, how long at most."""

    record: type[Record]
    parse: Callable[[Image, bytes, int], Record | None]
    version: int = 2
    limit: Callable[[StreamLimits], int] = lambda limits: limits.control_bytes


_KINDS: Mapping[RecordType, _Kind] = {
    RecordType.X86_PV_INFO: _Kind(PvInfo, libxc_bodies.pv_info),
    RecordType.X86_PV_P2M_FRAMES: _Kind(
        P2mFrames, libxc_bodies.p2m_frames, limit=libxc_bodies.p2m_frames_bytes
    ),
    RecordType.X86_PV_VCPU_BASIC: _Kind(VcpuContext, libxc_bodies.vcpu_basic),
    RecordType.X86_PV_VCPU_EXTENDED: _Kind(VcpuContext, libxc_bodies.vcpu_extended),
    RecordType.X86_PV_VCPU_XSAVE: _Kind(VcpuContext, libxc_bodies.vcpu_xsave),
    RecordType.X86_PV_VCPU_MSRS: _Kind(VcpuContext, libxc_bodies.vcpu_msrs),
    RecordType.SHARED_INFO: _Kind(SharedInfo, libxc_bodies.shared_info),
    RecordType.X86_TSC_INFO: _Kind(TscInfo, libxc_bodies.tsc_info),
    RecordType.HVM_CONTEXT: _Kind(
        HvmContext, libxc_bodies.hvm_context, limit=lambda limits: limits.hvm_context_bytes
    ),
    RecordType.HVM_PARAMS: _Kind(HvmParams, libxc_bodies.hvm_params),
    RecordType.VERIFY: _Kind(Verify, libxc_bodies.verify),
    RecordType.STATIC_DATA_END: _Kind(StaticDataEnd, libxc_bodies.static_data_end, 3),
    RecordType.X86_CPUID_POLICY: _Kind(CpuidPolicy, libxc_bodies.cpuid_policy, 3),
    RecordType.X86_MSR_POLICY: _Kind(MsrPolicy, libxc_bodies.msr_policy, 3),
}


def decode(
    first: bytes = b"",
    guest_type: GuestType | None = None,
    limits: StreamLimits = DEFAULT_LIMITS,
) -> Steps[None]:
    """Decode a bare image; `first` is as much of its first 8 bytes as was already taken.

    Raises:
        RecordError: a header or record is malformed, or is of another kind of guest.
        RecordOrderError: a record that must not come here.
        UnsupportedStream: checkpoints, big-endian images.
    """
    order = yield from decode_image(first, guest_type, limits)
    order.decoding(End)
    yield End()


def decode_image(
    first: bytes, guest_type: GuestType | None, limits: StreamLimits
) -> Steps[RecordOrder]:
    """Decode an image without saying End: a libxl stream goes on after it."""
    image = yield from _read_headers(first, guest_type, limits)
    while True:
        start = yield from tell()
        kind, length = yield from unpack(RECORD_HEADER)
        if kind == RecordType.END:
            yield from read_body("END", length, start, 0)
            yield from _infer_static_data_end(image, kind)
            image.order.expect(End, start)
            return image.order
        if kind == RecordType.PAGE_DATA:
            yield from _infer_static_data_end(image, kind)
            yield from _read_pages(image, length, start)
        else:
            yield from _read_record(image, kind, length, start)


def _read_headers(first: bytes, expected: GuestType | None, limits: StreamLimits) -> Steps[Image]:
    start = (yield from tell()) - len(first)
    marker = first + (yield from take(len(MARKER) - len(first)))
    ident, version, options, *reserved = yield from unpack(IMAGE_HEADER)
    if marker != MARKER or ident != IDENT:
        found = (marker + ident.to_bytes(4, "big")).hex()
        reason = f"begins with {found}, expected ffffffffffffffff58454e46"
        raise RecordError("image header", reason, offset=start)
    if version not in VERSIONS:
        raise UnsupportedStream(f"version {version}", offset=start, format=FORMAT)
    if options & OPTION_BIG_ENDIAN:
        raise UnsupportedStream("a big-endian image", offset=start, format=FORMAT)
    if options or any(reserved):
        raise RecordError("image header", "reserved bits are not zero", offset=start)
    at = yield from tell()
    number, shift, zero, _major, _minor = yield from unpack(DOMAIN_HEADER)
    guest_type = DOMAIN_TYPES.get(number)
    if guest_type is None or expected not in (None, guest_type):
        wanted = expected or "1 (pv) or 2 (hvm)"
        reason = f"domain type {number} ({guest_type or 'unknown'}), expected {wanted}"
        raise RecordError("domain header", reason, offset=at)
    if (shift, zero) != (PAGE_SHIFT, 0):
        reason = f"page shift {shift}, reserved {zero:#x}, expected 12 and 0"
        raise RecordError("domain header", reason, offset=at)
    order = RecordOrder(LIBXC[guest_type], LIBXC_ONCE)
    order.decoding(StreamStart, start)
    yield StreamStart(
        guest_type=guest_type, format=f"{FORMAT}-v{version}", tool_width=8, p2m_size=0
    )
    return Image(guest_type, version, limits, order)


def _infer_static_data_end(image: Image, kind: int) -> Steps[None]:
    if image.version == 2 and not image.has_static_data and kind != RecordType.X86_PV_INFO:
        image.order.decoding(StaticDataEnd)
        image.has_static_data = True
        yield StaticDataEnd()


def _read_record(image: Image, number: int, length: int, start: int) -> Steps[None]:
    if number & OPTIONAL:
        yield from _skip(length)
        return
    try:
        record_type = RecordType(number)
    except ValueError:
        reason = f"mandatory record type {number:#x} is not known"
        raise StreamError(reason, offset=start, format=FORMAT) from None
    if record_type in UNSUPPORTED:
        raise UnsupportedStream(UNSUPPORTED[record_type], offset=start, format=FORMAT)
    kind = _KINDS[record_type]
    if image.version < kind.version:
        reason = f"not in version {image.version}, expected version {kind.version}"
        raise RecordError(record_type.name, reason, offset=start)
    yield from _infer_static_data_end(image, number)
    image.order.decoding(kind.record, start)
    body = yield from read_body(record_type.name, length, start, kind.limit(image.limits))
    record = kind.parse(image, body, start)
    yield Passed() if record is None else record


def _skip(length: int) -> Steps[None]:
    left = length + -length % 8
    while left:
        left -= len((yield from take(min(left, SKIP_BYTES))))
        yield Passed()  # one record may have almost 4 GiB


def _read_pages(image: Image, length: int, start: int) -> Steps[None]:
    image.order.decoding(Pages, start)
    if not PAGE_DATA.size <= length <= MAX_RECORD:
        reason = f"{length} bytes, expected {PAGE_DATA.size} to {MAX_RECORD}"
        raise RecordError("PAGE_DATA", reason, offset=start)
    count, reserved = yield from unpack(PAGE_DATA)
    most = min((length - PAGE_DATA.size) // 8, image.nr_pages)
    if not 0 < count <= most or reserved:
        reason = f"{count} pfns, reserved {reserved:#x}, expected 1 to {most} and 0"
        raise RecordError("PAGE_DATA", reason, offset=start)
    at = yield from tell()
    wire = np.frombuffer((yield from take(8 * count)), "<u8").astype(np.uint64)
    batch = _check_entries(image, wire, at)
    data_bytes = PAGE_SIZE * int(np.count_nonzero(HAS_DATA[batch.types]))
    need = PAGE_DATA.size + 8 * count + data_bytes
    if length != need:
        reason = f"{count} pfns need {need} bytes, body has {length}"
        raise RecordError("PAGE_DATA", reason, offset=start)
    # Every sender stays within one piece. A record may be longer: its pages may fill 128 MiB,
    # which nobody is to hold at once.
    for first in range(0, count, MAX_BATCH):
        yield from _receive(batch if count <= MAX_BATCH else _piece(batch, first))


def _piece(batch: PageBatch, first: int) -> PageBatch:
    return PageBatch(batch.pfns[first : first + MAX_BATCH], batch.types[first : first + MAX_BATCH])


def _receive(batch: PageBatch) -> Steps[None]:
    views = yield from populate(batch)
    if views:
        yield Fill(views)
    yield Pages(batch, views)


def _check_entries(image: Image, wire: Pfns, offset: int) -> PageBatch:
    types = (wire >> TYPE_SHIFT).astype(np.uint8)
    pfns = wire & PFN_MASK

    def require(good: NDArray[np.bool_], expected: str) -> None:
        if not good.all():
            bad = int(np.argmin(good))
            reason = f"pfn {bad} of {len(wire)} is {int(wire[bad]):#x}, expected {expected}"
            raise RecordError("PAGE_DATA", reason, offset=offset + 8 * bad)

    # Ordinary pages of a good batch are their own pfns: one pass tells.
    if wire.max() < min(image.nr_pages, 1 << 52):
        return PageBatch(wire, types)
    require((wire & RESERVED_MASK) == 0, "bits 59-52 zero")
    require(VALID_TYPES[types], "a page type 0x0-0x4 or 0x9-0xf in bits 63-60")
    require(pfns < image.nr_pages, f"a pfn below {image.nr_pages:#x}")
    return PageBatch(pfns, types)
