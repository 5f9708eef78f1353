"""Tell from its first bytes what a file is, and whose a bare libxc stream is.

Sources: XendCheckpoint.py (signature), relocate.py (the request line), xc_domain_save.c: a legacy
stream has no magic; it begins with p2m_size, then for PV the extended info (all ones) or, from
3.1 and earlier, the p2m frame list, for HVM at once the first chunk.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from xendpy.guest.domain import GuestType
from xendpy.guest.pages import KNOWN, MAX_BATCH
from xendpy.stream.xend import SIGNATURE

REQUEST = b"receive\n"
HEAD_BYTES = 8 + 4 + MAX_BATCH * 8  # p2m_size, count, entries: what `guest_type_of` looks at
MAX_P2M_SIZE = 1 << 28
_LOWEST_CHUNK = -20  # HVM_NR_IOREQ_SERVER_PAGES, Xen 4.5


class FileKind(Enum):
    """What a file begins as."""

    CHECKPOINT = "save file"
    CAPTURE = "relocation capture"
    LIBXC = "bare libxc stream"
    XL = "xl save file"
    STORED = "guest of the store"  # a directory
    LIBXC_V2 = "libxc v2 stream"
    UNKNOWN = "unknown"


def kind_of(head: bytes) -> FileKind:
    """Return what a file that begins with `head` is."""
    if head.startswith(SIGNATURE):
        return FileKind.CHECKPOINT
    if head.startswith(REQUEST):
        return FileKind.CAPTURE
    if head.startswith(b"Xen saved domain"):  # libxl's xl_cmdimpl.c SAVEFILE_MAGIC
        return FileKind.XL
    if head.startswith(b"\xff" * 8):  # [libxc v2 specification, image header: marker]
        return FileKind.LIBXC_V2
    p2m_size = int.from_bytes(head[:4], "little")
    if len(head) < 12 or not 0 < p2m_size <= MAX_P2M_SIZE:
        return FileKind.UNKNOWN
    return FileKind.LIBXC


def guest_type_of(head: bytes) -> GuestType | None:
    """Return whose legacy stream begins with `head`, or None where that cannot be told.

    HVM is believed only if a whole first batch makes sense, or the first chunk is a control one.
    """
    if _width_is_8(head):
        width, layout = 8, "<u8"
        if head[8:16] == b"\xff" * 8:
            return GuestType.PV
    else:
        width, layout = 4, "<u4"
        if head[4:8] == b"\xff" * 4:
            return GuestType.PV
    p2m_size = int.from_bytes(head[:width], "little")
    marker = int.from_bytes(head[width : width + 4], "little", signed=True)
    if _LOWEST_CHUNK <= marker < 0:
        return GuestType.HVM
    if not 0 < marker <= MAX_BATCH:
        return GuestType.PV
    body = head[width + 4 : width + 4 + marker * width]
    if len(body) < marker * width:
        return None
    entries = np.frombuffer(body, layout).astype(np.uint64)
    types = (entries >> np.uint64(28)).astype(np.uint64)
    pfns = entries & np.uint64(0x0FFFFFFF)
    if (types > 15).any():
        return GuestType.PV
    plausible = KNOWN[types] & ((types == 15) | (pfns < p2m_size))
    return GuestType.HVM if plausible.all() else GuestType.PV


def _width_is_8(head: bytes) -> bool:
    # 64-bit tools: the high half of p2m_size; 32-bit ones have something non-zero there.
    return head[4:8] == bytes(4)
