"""Page types, page batches, runs of frames, and the bitmap of dirty ones.

The page type is the 4-bit PFINFO value of Xen's public headers (domctl.h, XEN_DOMCTL_PFINFO_*):
the same in the legacy libxc stream (bits 31-28 of an entry) and in v2 (bits 63-60).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

PAGE_SIZE = 4096
PAGE_SHIFT = 12
MAX_BATCH = 1024  # pages; xc_domain_save.c MAX_BATCH_SIZE, all releases

Pfns: TypeAlias = NDArray[np.uint64]
Types: TypeAlias = NDArray[np.uint8]


class PageType(IntEnum):
    """What a frame is to the hypervisor. 0x5-0x7 are invalid; bit 3 of a table type = pinned."""

    NOTAB = 0x0
    L1TAB = 0x1
    L2TAB = 0x2
    L3TAB = 0x3
    L4TAB = 0x4
    # 0x5 - 0x7: invalid
    PINNED_NOTAB = 0x8  # never generated; receivers take it as data
    L1TAB_PIN = 0x9
    L2TAB_PIN = 0xA
    L3TAB_PIN = 0xB
    L4TAB_PIN = 0xC
    BROKEN = 0xD  # Xen >= 4.3
    XALLOC = 0xE  # allocate, no data; Xen >= 4.2
    XTAB = 0xF  # not present


def _table(*types: int) -> NDArray[np.bool_]:
    table = np.zeros(16, np.bool_)
    table[list(types)] = True
    table.flags.writeable = False
    return table


# Indexed by type: 4096 bytes follow in the stream / a frame exists / the value is valid at all.
HAS_DATA = _table(0x0, 0x1, 0x2, 0x3, 0x4, 0x8, 0x9, 0xA, 0xB, 0xC)
POPULATED = _table(0x0, 0x1, 0x2, 0x3, 0x4, 0x8, 0x9, 0xA, 0xB, 0xC, 0xD, 0xE)
KNOWN = _table(0x0, 0x1, 0x2, 0x3, 0x4, 0x8, 0x9, 0xA, 0xB, 0xC, 0xD, 0xE, 0xF)


@dataclass(frozen=True, slots=True)
class PageBatch:
    """Frames that one batch describes, in stream order.

    `pfns` is uint64[n], `types` uint8[n] of `PageType` values. Both are the decoder's own arrays:
    read them during the call that got them, copy what must last.
    """

    pfns: Pfns
    types: Types

    def __len__(self) -> int:
        return len(self.pfns)

    def with_data(self) -> Pfns:
        """Return the pfns whose 4096 bytes are in the stream, in stream order."""
        mask = HAS_DATA[self.types]
        return self.pfns if mask.all() else self.pfns[mask]


def runs(pfns: Pfns) -> tuple[Pfns, Pfns]:
    """Return (first pfn, number of pages) of every run of neighbours, in the order given."""
    if not len(pfns):
        return pfns, pfns
    steps = pfns[1:] - pfns[:-1] != 1
    if not steps.any():
        return pfns[:1], np.array([len(pfns)], np.uint64)
    cuts = np.flatnonzero(steps) + 1
    starts = np.concatenate((np.zeros(1, np.intp), cuts))
    ends = np.concatenate((cuts, np.array([len(pfns)], np.intp)))
    return pfns[starts], (ends - starts).astype(np.uint64)


class DirtyBitmap:
    """A set of pfns below `nr_pages`, a byte per page: marking and counting are vectorised."""

    def __init__(self, nr_pages: int) -> None:
        self.flags: NDArray[np.bool_] = np.zeros(nr_pages, np.bool_)

    @classmethod
    def of(cls, nr_pages: int, pfns: Pfns) -> DirtyBitmap:
        """Return a bitmap with just `pfns` set."""
        bitmap = cls(nr_pages)
        bitmap.mark(pfns)
        return bitmap

    def mark(self, pfns: Pfns) -> None:
        """Set `pfns`, each below `nr_pages`."""
        self.flags[pfns] = True

    def merge(self, other: DirtyBitmap) -> None:
        """Set all that `other` has set."""
        np.logical_or(self.flags, other.flags, out=self.flags)

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self.flags))

    def pfns(self) -> Pfns:
        """Return the pfns that are set, ascending."""
        return np.flatnonzero(self.flags).astype(np.uint64)

    def batches(self, limit: int = MAX_BATCH) -> Iterator[Pfns]:
        """Yield the pfns that are set, ascending, at most `limit` at a time."""
        pfns = self.pfns()
        for start in range(0, len(pfns), limit):
            yield pfns[start : start + limit]
