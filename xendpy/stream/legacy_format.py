"""The numbers of the legacy libxc image: chunk ids, sizes, layouts.

Source: xc_domain_save.c, xc_domain_restore.c, xg_save_restore.h of Xen 3.0.3 - 4.5. There is no
magic, no version, no alignment; integers are little-endian, and a "UL" is an unsigned long of
the sender's tools, 4 or 8 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from struct import Struct

from xendpy.guest.pages import PAGE_SIZE


class Chunk(IntEnum):
    """The signed marker before each chunk of the body; above 0 it is a count of pages."""

    END = 0
    ENABLE_VERIFY_MODE = -1
    VCPU_INFO = -2
    HVM_IDENT_PT = -3
    HVM_VM86_TSS = -4
    TMEM = -5
    TMEM_EXTRA = -6
    TSC_INFO = -7
    HVM_CONSOLE_PFN = -8
    LAST_CHECKPOINT = -9
    HVM_ACPI_IOPORTS_LOCATION = -10
    HVM_VIRIDIAN = -11
    COMPRESSED_DATA = -12
    ENABLE_COMPRESSION = -13
    HVM_GENERATION_ID_ADDR = -14
    HVM_PAGING_RING_PFN = -15
    HVM_ACCESS_RING_PFN = -16
    HVM_SHARING_RING_PFN = -17
    TOOLSTACK = -18
    HVM_IOREQ_SERVER_PFN = -19
    HVM_NR_IOREQ_SERVER_PAGES = -20


class HvmParam(IntEnum):
    """HVM parameter numbers that a legacy image can carry. (public/hvm/params.h)"""

    STORE_PFN = 1
    PAE_ENABLED = 4
    IOREQ_PFN = 5
    BUFIOREQ_PFN = 6
    VIRIDIAN = 9
    IDENT_PT = 12
    VM86_TSS = 15
    CONSOLE_PFN = 17
    ACPI_IOPORTS_LOCATION = 19
    PAGING_RING_PFN = 27
    ACCESS_RING_PFN = 28
    SHARING_RING_PFN = 29
    IOREQ_SERVER_PFN = 32
    NR_IOREQ_SERVER_PAGES = 33
    VM_GENERATION_ID_ADDR = 34


PARAM_OF_CHUNK: Mapping[Chunk, HvmParam] = {
    Chunk.HVM_IDENT_PT: HvmParam.IDENT_PT,
    Chunk.HVM_VM86_TSS: HvmParam.VM86_TSS,
    Chunk.HVM_CONSOLE_PFN: HvmParam.CONSOLE_PFN,
    Chunk.HVM_ACPI_IOPORTS_LOCATION: HvmParam.ACPI_IOPORTS_LOCATION,
    Chunk.HVM_VIRIDIAN: HvmParam.VIRIDIAN,
    Chunk.HVM_GENERATION_ID_ADDR: HvmParam.VM_GENERATION_ID_ADDR,
    Chunk.HVM_PAGING_RING_PFN: HvmParam.PAGING_RING_PFN,
    Chunk.HVM_ACCESS_RING_PFN: HvmParam.ACCESS_RING_PFN,
    Chunk.HVM_SHARING_RING_PFN: HvmParam.SHARING_RING_PFN,
    Chunk.HVM_IOREQ_SERVER_PFN: HvmParam.IOREQ_SERVER_PFN,
    Chunk.HVM_NR_IOREQ_SERVER_PAGES: HvmParam.NR_IOREQ_SERVER_PAGES,
}
CHUNK_OF_PARAM: Mapping[int, Chunk] = {param: chunk for chunk, param in PARAM_OF_CHUNK.items()}
MAGIC_PARAMS = (HvmParam.IOREQ_PFN, HvmParam.BUFIOREQ_PFN, HvmParam.STORE_PFN)  # tail order

UNSUPPORTED: Mapping[int, str] = {
    Chunk.TMEM: "transcendent memory (tmem)",
    Chunk.TMEM_EXTRA: "transcendent memory (tmem)",
    Chunk.COMPRESSED_DATA: "a checkpointed stream with Remus page compression",
    Chunk.ENABLE_COMPRESSION: "a checkpointed stream with Remus page compression",
}

UL: Mapping[int, Struct] = {4: Struct("<I"), 8: Struct("<Q")}
UL_DTYPE: Mapping[int, str] = {4: "<u4", 8: "<u8"}
MARKER = Struct("<i")
U32 = Struct("<I")
TSC_INFO = Struct("<IQII")  # mode, nsec, khz, incarnation: not the order of v2
HVM_VALUE = Struct("<IQ")  # padding, value
MAX_VCPU_ID = Struct("<i")
XSAVE_HEADER = Struct("<QQ")  # xfeature mask, size of what follows
MAGIC_PFNS = Struct("<QQQ")  # ioreq, bufioreq, store
EXT_BLOCK = Struct("<4sI")  # id, size

CONTEXT_BYTES: Mapping[int, int] = {8: 5168, 4: 2800}  # vcpu_guest_context by guest width
WIDTH_OF_CONTEXT: Mapping[int, int] = {size: width for width, size in CONTEXT_BYTES.items()}
LEVELS: Mapping[int, int] = {8: 4, 4: 3}
EXTENDED_BYTES = 128
SIGNATURE_BYTES = 21  # of the device-model record
QEMU_MAGIC = b"QEVM"


def p2m_frame_count(p2m_size: int, guest_width: int) -> int:
    """Return how many pages a p2m of `p2m_size` entries of `guest_width` bytes takes."""
    return -(-p2m_size * guest_width // PAGE_SIZE)
