"""The `types` file of a guest at rest: a byte per pfn, 0 = no frame, else 0x10 | PageType.

Zero means absent so that a wide, mostly empty pfn space costs neither memory nor disk.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from xendpy.guest.pages import POPULATED, DirtyBitmap, PageType, Pfns, Types, runs
from xendpy.hypervisor.durable import Durable

PRESENT = 0x10
SPARE_BYTES = 16384  # writing so many more bytes at once costs as much as another write: 3 us

# Indexed by type: the byte that is stored.
_MARKS = np.where(POPULATED, np.arange(16, dtype=np.uint8) | PRESENT, 0).astype(np.uint8)
# Indexed by stored byte: the type it means.
_TYPES = np.full(256, PageType.XTAB, np.uint8)
_TYPES[PRESENT : PRESENT + 16] = np.arange(16, dtype=np.uint8)


class PageTypes:
    """What every frame is, in memory and in its file."""

    def __init__(self, path: Path, fd: int, marks: Types) -> None:
        self.path = path
        self.fd = fd
        self._marks = marks
        self._nr_pages = len(marks)

    @classmethod
    def create(cls, path: Path, durable: Durable) -> PageTypes:
        """Return an empty table in a file that must not exist."""
        return cls(path, durable.create(path), np.zeros(0, np.uint8))

    @classmethod
    def load(cls, path: Path) -> PageTypes:
        """Read a table for reading only."""
        # Mapped, not read: the holes of a wide pfn space cost nothing.
        size = path.stat().st_size
        marks = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        return cls(path, -1, marks)

    @property
    def nr_pages(self) -> int:
        """The highest pfn ever named + 1."""
        return self._nr_pages

    def reserve(self, nr_pages: int) -> None:
        """Make room for pfns below `nr_pages`; untouched room costs nothing."""
        if nr_pages > len(self._marks):
            marks = np.zeros(max(nr_pages, 2 * len(self._marks)), np.uint8)
            marks[: len(self._marks)] = self._marks
            self._marks = marks

    def update(self, pfns: Pfns, types: Types) -> None:
        """Set the types of `pfns`, uint8[n], in memory and in the file, XTAB = no frame."""
        if not len(pfns):
            return
        highest = int(pfns.max()) + 1
        self.reserve(highest)
        self._nr_pages = max(self._nr_pages, highest)
        marks = _MARKS[types]
        changed = self._marks[pfns] != marks
        if changed.any():
            self._marks[pfns] = marks
            self._write(np.sort(pfns[changed]))

    def remove(self, pfns: Pfns) -> None:
        """Set `pfns` absent; those never seen are so already."""
        inside = pfns[pfns < self._nr_pages]
        self.update(inside, np.full(len(inside), PageType.XTAB, np.uint8))

    def of(self, pfns: Pfns) -> Types:
        """Return the types of `pfns`, each below `nr_pages`."""
        return _TYPES[self._marks[pfns]]

    def all(self) -> Types:
        """Return the types of every pfn below `nr_pages`."""
        return _TYPES[self._marks[: self._nr_pages]]

    def present(self) -> DirtyBitmap:
        """Return the frames that exist."""
        bitmap = DirtyBitmap(0)
        bitmap.flags = self._marks[: self._nr_pages] != 0
        return bitmap

    def finish(self) -> None:
        """Give the file its final length. Does not sync."""
        os.ftruncate(self.fd, self._nr_pages)

    def close(self) -> None:
        """Let go of the file. May be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _write(self, pfns: Pfns) -> None:
        first, last = int(pfns[0]), int(pfns[-1])
        starts, counts = runs(pfns)
        if last - first < SPARE_BYTES * len(starts):
            self._write_run(first, last + 1)
            return
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            self._write_run(start, start + count)

    def _write_run(self, first: int, end: int) -> None:
        while first < end:
            first += os.pwrite(self.fd, self._marks[first:end].data, first)
