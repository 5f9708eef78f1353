"""The bodies of a libxc image's records, page data apart: from bytes to a Record.

Each function takes what the image has said so far, the body without padding, and the record's
offset for errors. Source: docs/specs/libxc-migration-stream, "Records".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xendpy.errors import RecordError
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import PAGE_SIZE
from xendpy.stream.libxc_format import (
    BASIC_BYTES,
    CPUID_LEAF_BYTES,
    EXTENDED_MAX_BYTES,
    HVM_PARAM,
    HVM_PARAMS,
    MSR_ENTRY_BYTES,
    P2M_FRAMES,
    PV_INFO,
    TSC_INFO,
    VCPU_HEADER,
    VCPU_OF_KIND,
    XSAVE_MIN_BYTES,
    p2m_frame_count,
)
from xendpy.stream.limits import StreamLimits
from xendpy.stream.order import RecordOrder
from xendpy.stream.records import (
    CpuidPolicy,
    HvmContext,
    HvmParams,
    MsrPolicy,
    P2mFrames,
    PvInfo,
    SharedInfo,
    StaticDataEnd,
    TscInfo,
    VcpuContext,
    VcpuContextKind,
    Verify,
)

PV_MODES = ((8, 4), (4, 3))


@dataclass(slots=True)
class Image:
    """What an image has said so far; `nr_pages` is the bound of its pfns."""

    guest_type: GuestType
    version: int
    limits: StreamLimits
    order: RecordOrder
    has_static_data: bool = False
    guest_width: int = 0
    last_pfn: int | None = None

    @property
    def nr_pages(self) -> int:
        return self.limits.modern_pages if self.last_pfn is None else self.last_pfn + 1


def _require(good: object, record: str, found: str, expected: str, offset: int) -> None:
    if not good:
        raise RecordError(record, f"{found}, expected {expected}", offset=offset)


def _require_length(body: bytes, length: int, record: str, offset: int) -> None:
    _require(len(body) == length, record, f"{len(body)} bytes", str(length), offset)


def pv_info(image: Image, body: bytes, offset: int) -> PvInfo:
    """Parse X86_PV_INFO."""
    _require_length(body, PV_INFO.size, "X86_PV_INFO", offset)
    width, levels, reserved = PV_INFO.unpack(body)
    found = f"width {width}, levels {levels}"
    _require((width, levels) in PV_MODES, "X86_PV_INFO", found, "8 and 4, or 4 and 3", offset)
    _require(not any(reserved), "X86_PV_INFO", "reserved bytes", "zeros", offset)
    image.guest_width = width
    return PvInfo(guest_width=width, pt_levels=levels)


def p2m_frames_bytes(limits: StreamLimits) -> int:
    """Return how long X86_PV_P2M_FRAMES may be: that of the largest 64-bit guest."""
    return P2M_FRAMES.size + 8 * p2m_frame_count(0, limits.modern_pages - 1, 8)


def p2m_frames(image: Image, body: bytes, offset: int) -> P2mFrames:
    """Parse X86_PV_P2M_FRAMES, which may come again for a p2m that has grown."""
    name = "X86_PV_P2M_FRAMES"
    _require(len(body) >= P2M_FRAMES.size, name, f"{len(body)} bytes", "8 or more", offset)
    first, last = P2M_FRAMES.unpack_from(body)
    limit = image.limits.modern_pages
    found = f"pfns {first:#x} to {last:#x}"
    _require(first <= last < limit, name, found, f"ascending, below {limit:#x}", offset)
    count = p2m_frame_count(first, last, image.guest_width)
    _require_length(body, P2M_FRAMES.size + 8 * count, name, offset)
    image.last_pfn = last if image.last_pfn is None else max(last, image.last_pfn)
    frames = np.frombuffer(body, "<u8", offset=P2M_FRAMES.size).astype(np.uint64)
    highest = int(frames.max())
    _require(
        highest < image.nr_pages, name, f"pfn {highest:#x}", f"below {image.nr_pages:#x}", offset
    )
    return P2mFrames(first, last, frames)


def _vcpu(image: Image, body: bytes, offset: int, kind: VcpuContextKind) -> tuple[int, bytes]:
    name = VCPU_OF_KIND[kind].name
    _require(len(body) >= VCPU_HEADER.size, name, f"{len(body)} bytes", "8 or more", offset)
    vcpu, reserved = VCPU_HEADER.unpack_from(body)
    highest = image.limits.max_vcpu_id
    _require(vcpu <= highest, name, f"vcpu {vcpu}", f"0 to {highest}", offset)
    _require(not reserved, name, f"reserved {reserved:#x}", "0", offset)
    return vcpu, body[VCPU_HEADER.size :]


def vcpu_basic(image: Image, body: bytes, offset: int) -> VcpuContext | None:
    """Parse X86_PV_VCPU_BASIC; an empty one says nothing, as for all four."""
    vcpu, blob = _vcpu(image, body, offset, VcpuContextKind.BASIC)
    if not blob:
        return None
    _require_length(blob, BASIC_BYTES[image.guest_width], "X86_PV_VCPU_BASIC", offset)
    return VcpuContext(vcpu, VcpuContextKind.BASIC, blob)


def vcpu_extended(image: Image, body: bytes, offset: int) -> VcpuContext | None:
    """Parse X86_PV_VCPU_EXTENDED."""
    vcpu, blob = _vcpu(image, body, offset, VcpuContextKind.EXTENDED)
    good = len(blob) <= EXTENDED_MAX_BYTES
    _require(good, "X86_PV_VCPU_EXTENDED", f"{len(blob)} bytes", "at most 128", offset)
    return VcpuContext(vcpu, VcpuContextKind.EXTENDED, blob) if blob else None


def vcpu_xsave(image: Image, body: bytes, offset: int) -> VcpuContext | None:
    """Parse X86_PV_VCPU_XSAVE; its second word, xcr0_accum, is the legacy header's mask."""
    vcpu, blob = _vcpu(image, body, offset, VcpuContextKind.XSAVE)
    if not blob:
        return None
    good = len(blob) >= XSAVE_MIN_BYTES
    _require(good, "X86_PV_VCPU_XSAVE", f"{len(blob)} bytes", "16 or more", offset)
    mask = int.from_bytes(blob[8:16], "little")
    return VcpuContext(vcpu, VcpuContextKind.XSAVE, blob, mask)


def vcpu_msrs(image: Image, body: bytes, offset: int) -> VcpuContext | None:
    """Parse X86_PV_VCPU_MSRS."""
    vcpu, blob = _vcpu(image, body, offset, VcpuContextKind.MSRS)
    good = len(blob) % MSR_ENTRY_BYTES == 0
    _require(good, "X86_PV_VCPU_MSRS", f"{len(blob)} bytes", "a multiple of 16", offset)
    return VcpuContext(vcpu, VcpuContextKind.MSRS, blob) if blob else None


def shared_info(_image: Image, body: bytes, offset: int) -> SharedInfo:
    """Parse SHARED_INFO."""
    _require_length(body, PAGE_SIZE, "SHARED_INFO", offset)
    return SharedInfo(body)


def tsc_info(_image: Image, body: bytes, offset: int) -> TscInfo:
    """Parse X86_TSC_INFO."""
    _require_length(body, TSC_INFO.size, "X86_TSC_INFO", offset)
    mode, khz, nsec, incarnation, reserved = TSC_INFO.unpack(body)
    _require(not reserved, "X86_TSC_INFO", f"reserved {reserved:#x}", "0", offset)
    return TscInfo(mode=mode, khz=khz, nsec=nsec, incarnation=incarnation)


def hvm_context(_image: Image, body: bytes, offset: int) -> HvmContext:
    """Parse HVM_CONTEXT."""
    _require(body, "HVM_CONTEXT", "no bytes", "some", offset)
    return HvmContext(body)


def hvm_params(_image: Image, body: bytes, offset: int) -> HvmParams | None:
    """Parse HVM_PARAMS; Xen 4.6 - 4.8 sent some with no entries."""
    good = len(body) >= HVM_PARAMS.size
    _require(good, "HVM_PARAMS", f"{len(body)} bytes", "8 or more", offset)
    count, reserved = HVM_PARAMS.unpack_from(body)
    _require(not reserved, "HVM_PARAMS", f"reserved {reserved:#x}", "0", offset)
    _require_length(body, HVM_PARAMS.size + count * HVM_PARAM.size, "HVM_PARAMS", offset)
    params = tuple(HVM_PARAM.iter_unpack(body[HVM_PARAMS.size :]))
    return HvmParams(params) if params else None


def verify(_image: Image, body: bytes, offset: int) -> Verify:
    """Parse VERIFY."""
    _require_length(body, 0, "VERIFY", offset)
    return Verify()


def static_data_end(image: Image, body: bytes, offset: int) -> StaticDataEnd:
    """Parse STATIC_DATA_END."""
    _require_length(body, 0, "STATIC_DATA_END", offset)
    image.has_static_data = True
    return StaticDataEnd()


def cpuid_policy(_image: Image, body: bytes, offset: int) -> CpuidPolicy:
    """Parse X86_CPUID_POLICY."""
    good = body and len(body) % CPUID_LEAF_BYTES == 0
    _require(good, "X86_CPUID_POLICY", f"{len(body)} bytes", "a multiple of 24", offset)
    return CpuidPolicy(body)


def msr_policy(_image: Image, body: bytes, offset: int) -> MsrPolicy:
    """Parse X86_MSR_POLICY."""
    good = body and len(body) % MSR_ENTRY_BYTES == 0
    _require(good, "X86_MSR_POLICY", f"{len(body)} bytes", "a multiple of 16", offset)
    return MsrPolicy(body)
