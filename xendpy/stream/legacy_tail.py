"""The tail of a legacy image: what follows the end marker of its body.

PV: unmapped pfns, the context of every online vcpu, the shared info page. HVM: three frame
numbers, the HVM context, the device-model record.
"""

from __future__ import annotations

import numpy as np

from xendpy.errors import RecordError, StreamTruncated
from xendpy.guest.pages import PAGE_SIZE
from xendpy.stream.framing import take_large
from xendpy.stream.legacy_format import (
    CONTEXT_BYTES,
    EXTENDED_BYTES,
    MAGIC_PARAMS,
    MAGIC_PFNS,
    QEMU_MAGIC,
    SIGNATURE_BYTES,
    U32,
    UL_DTYPE,
    XSAVE_HEADER,
)
from xendpy.stream.legacy_head import Head
from xendpy.stream.limits import StreamLimits
from xendpy.stream.order import RecordOrder
from xendpy.stream.records import (
    EmulatorContext,
    EmulatorSignature,
    HvmContext,
    HvmParams,
    PvInfo,
    SharedInfo,
    UnmappedPfns,
    VcpuContext,
    VcpuContextKind,
)
from xendpy.stream.steps import Steps, take, take_rest, tell, unpack

UNMAPPED_PIECE = 1 << 17  # entries taken at once, at most 1 MiB


def read_pv_tail(head: Head, vcpu_ids: tuple[int, ...], order: RecordOrder) -> Steps[None]:
    """Read a PV tail with a context for each of `vcpu_ids`, ascending."""
    assert head.pv is not None
    yield from _read_unmapped(head, order)
    for vcpu_id in vcpu_ids:
        yield from _read_vcpu(head.pv, vcpu_id, order)
    order.decoding(SharedInfo, (yield from tell()))
    yield SharedInfo((yield from take(PAGE_SIZE)))


def _read_unmapped(head: Head, order: RecordOrder) -> Steps[None]:
    start = yield from tell()
    order.decoding(UnmappedPfns, start)
    (count,) = yield from unpack(U32)
    if count > head.p2m_size:
        reason = f"{count} entries, expected at most {head.p2m_size}"
        raise RecordError("unmapped pfns", reason, offset=start)
    # Its pages take no memory before they are written to: a count alone costs nothing.
    pfns = np.empty(count, np.uint64)
    for done in range(0, count, UNMAPPED_PIECE):
        piece = pfns[done : done + UNMAPPED_PIECE]
        at = yield from tell()
        raw = yield from take(len(piece) * head.tool_width)
        piece[:] = np.frombuffer(raw, UL_DTYPE[head.tool_width])
        good = piece < head.p2m_size
        if not good.all():
            bad = int(np.argmin(good))
            found = f"entry {done + bad} is {int(piece[bad]):#x}"
            reason = f"{found}, expected a pfn below {head.p2m_size:#x}"
            raise RecordError("unmapped pfns", reason, offset=at + bad * head.tool_width)
    yield UnmappedPfns(pfns)


def _read_vcpu(info: PvInfo, vcpu_id: int, order: RecordOrder) -> Steps[None]:
    order.decoding(VcpuContext, (yield from tell()))
    basic = yield from take(CONTEXT_BYTES[info.guest_width])
    yield VcpuContext(vcpu_id, VcpuContextKind.BASIC, basic)
    if info.extended:
        extended = yield from take(EXTENDED_BYTES)
        yield VcpuContext(vcpu_id, VcpuContextKind.EXTENDED, extended)
    if info.xsave_bytes is not None:
        start = yield from tell()
        mask, size = yield from unpack(XSAVE_HEADER)
        if size != info.xsave_bytes - XSAVE_HEADER.size:
            reason = f"{size} bytes, expected {info.xsave_bytes - XSAVE_HEADER.size}"
            raise RecordError(f"xsave state of vcpu {vcpu_id}", reason, offset=start)
        blob = yield from take(size)
        yield VcpuContext(vcpu_id, VcpuContextKind.XSAVE, blob, mask)


def read_hvm_tail(limits: StreamLimits, order: RecordOrder) -> Steps[None]:
    """Read a HVM tail up to and including the device-model record."""
    order.decoding(HvmParams, (yield from tell()))
    pfns = yield from unpack(MAGIC_PFNS)
    yield HvmParams(
        tuple((int(param), pfn) for param, pfn in zip(MAGIC_PARAMS, pfns, strict=True))
    )
    start = yield from tell()
    order.decoding(HvmContext, start)
    size = yield from _length("HVM context", start, limits.hvm_context_bytes)
    yield HvmContext((yield from take(size)))
    yield from _read_emulator(limits, order)


def _length(record: str, start: int, limit: int) -> Steps[int]:
    (size,) = yield from unpack(U32)
    if not 0 < size <= limit:
        raise RecordError(record, f"{size} bytes, expected 1 to {limit}", offset=start)
    return int(size)


def _read_emulator(limits: StreamLimits, order: RecordOrder) -> Steps[None]:
    start = yield from tell()
    order.decoding(EmulatorContext, start)
    raw = yield from take(SIGNATURE_BYTES)
    try:
        signature = EmulatorSignature(raw.decode("ascii"))
    except ValueError:
        reason = f"not a valid device model state: found {ascii(raw)[1:]}"
        raise RecordError("device model", reason, offset=start) from None
    if signature is EmulatorSignature.XEND:
        blob = yield from _read_to_end(limits.device_model_bytes)
    else:
        at = yield from tell()
        size = yield from _length("device model", at, limits.device_model_bytes)
        blob = yield from take_large(size)
    yield EmulatorContext(signature, blob)


def _read_to_end(limit: int) -> Steps[bytes]:
    """Return the rest of the stream: only its magic shows that it is not cut right there."""
    start = yield from tell()
    blob = yield from take_rest(limit)
    if len(blob) < len(QEMU_MAGIC) and QEMU_MAGIC.startswith(blob):
        raise StreamTruncated(offset=start, wanted=len(QEMU_MAGIC), got=len(blob))
    if not blob.startswith(QEMU_MAGIC):
        reason = f"state begins with {ascii(blob[:4])[1:]}, expected {ascii(QEMU_MAGIC)[1:]}"
        raise RecordError("device model", reason, offset=start)
    return blob
