"""The numbers of the libxc image v2 and v3, Xen 4.6 and later.

Source: docs/specs/libxc-migration-stream. The image header is big-endian, all else here
little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from struct import Struct

import numpy as np

from xendpy.guest.domain import GuestType
from xendpy.guest.pages import KNOWN, PageType
from xendpy.stream.records import VcpuContextKind

MARKER = b"\xff" * 8
IDENT = 0x58454E46  # "XENF"
VERSIONS = (2, 3)  # 2: Xen 4.6 - 4.13
OPTION_BIG_ENDIAN = 1
PAGE_SHIFT = 12

IMAGE_HEADER = Struct(">IIHHI")  # id, version, options, reserved; after the marker
DOMAIN_HEADER = Struct("<IHHII")  # type, page shift, reserved, Xen major, minor
DOMAIN_TYPES: Mapping[int, GuestType] = {1: GuestType.PV, 2: GuestType.HVM}
TYPE_OF_DOMAIN: Mapping[GuestType, int] = {guest: n for n, guest in DOMAIN_TYPES.items()}
CONVERTED = (0, 1)  # Xen "0.1": not made by a hypervisor


class RecordType(IntEnum):
    """Types of records. [libxc Records]"""

    END = 0
    PAGE_DATA = 1
    X86_PV_INFO = 2
    X86_PV_P2M_FRAMES = 3
    X86_PV_VCPU_BASIC = 4
    X86_PV_VCPU_EXTENDED = 5
    X86_PV_VCPU_XSAVE = 6
    SHARED_INFO = 7
    X86_TSC_INFO = 8
    HVM_CONTEXT = 9
    HVM_PARAMS = 10
    TOOLSTACK = 11  # deprecated
    X86_PV_VCPU_MSRS = 12
    VERIFY = 13
    CHECKPOINT = 14
    CHECKPOINT_DIRTY_PFN_LIST = 15  # towards the sender, COLO alone
    STATIC_DATA_END = 16  # this and the rest: v3
    X86_CPUID_POLICY = 17
    X86_MSR_POLICY = 18


UNSUPPORTED: Mapping[RecordType, str] = {
    RecordType.TOOLSTACK: "a TOOLSTACK record in a libxc image",
    RecordType.CHECKPOINT: "a checkpointed stream",
    RecordType.CHECKPOINT_DIRTY_PFN_LIST: "a checkpointed stream",
}
KIND_OF_VCPU: Mapping[RecordType, VcpuContextKind] = {
    RecordType.X86_PV_VCPU_BASIC: VcpuContextKind.BASIC,
    RecordType.X86_PV_VCPU_EXTENDED: VcpuContextKind.EXTENDED,
    RecordType.X86_PV_VCPU_XSAVE: VcpuContextKind.XSAVE,
    RecordType.X86_PV_VCPU_MSRS: VcpuContextKind.MSRS,
}
VCPU_OF_KIND: Mapping[VcpuContextKind, RecordType] = {
    kind: record for record, kind in KIND_OF_VCPU.items()
}

PAGE_DATA = Struct("<II")  # count, reserved
PV_INFO = Struct("<BB6s")  # guest width, levels, reserved
P2M_FRAMES = Struct("<II")  # first and last pfn
VCPU_HEADER = Struct("<II")  # vcpu, reserved
TSC_INFO = Struct("<IIQII")  # mode, khz, nsec, incarnation, reserved
HVM_PARAMS = Struct("<II")  # count, reserved
HVM_PARAM = Struct("<QQ")  # index, value

TYPE_SHIFT = 60
PFN_MASK = np.uint64((1 << 52) - 1)
RESERVED_MASK = np.uint64(0xFF << 52)
BASIC_BYTES: Mapping[int, int] = {8: 5168, 4: 2800}  # vcpu_guest_context, by guest width
CPUID_LEAF_BYTES = 24
MSR_ENTRY_BYTES = 16
EXTENDED_MAX_BYTES = 128
XSAVE_MIN_BYTES = 16

# As in the legacy image, but for the pinned ordinary page, which is invalid.
VALID_TYPES = KNOWN.copy()
VALID_TYPES[PageType.PINNED_NOTAB] = False
VALID_TYPES.flags.writeable = False


def p2m_frame_count(first_pfn: int, last_pfn: int, guest_width: int) -> int:
    """Return how many frames of the p2m a P2M_FRAMES record for these pfns has."""
    per_frame = 4096 // guest_width
    return last_pfn // per_frame - first_pfn // per_frame + 1
