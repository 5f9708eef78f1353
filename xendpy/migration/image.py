"""A guest's memory in a scratch file: what arrives is written, what never came is a hole.

Pages pass through one staging buffer and `pwritev`, not through a mapping: a full disk is then an
OSError, and the memory of this process stays the same whatever the guest's size.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from xendpy.guest.memoryfile import read_at
from xendpy.guest.pages import (
    PAGE_SIZE,
    POPULATED,
    PageBatch,
    PageType,
    Pfns,
    Types,
    runs,
)
from xendpy.guest.staging import Staging

_PUNCH_HOLE = 0x1 | 0x2  # linux/falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)
_HASH_PAGES = 256  # pages hashed at a time: 1 MiB of buffer


class MemoryImage:
    """`nr_pages` frames in the file `fd`, page n at n x 4096; the caller closes the file.

    It grows where a stream has not said how large its guest is.
    """

    def __init__(self, fd: int, nr_pages: int) -> None:
        self.nr_pages = nr_pages
        # Last PageType + 1 by pfn, 0 = no frame: a huge p2m_size costs nothing until it is used.
        self._marks: NDArray[np.uint8] = np.zeros(nr_pages, np.uint8)
        self._fd = fd
        self._staging = Staging()
        os.ftruncate(fd, nr_pages * PAGE_SIZE)

    @classmethod
    def existing(cls, fd: int, types: Types) -> MemoryImage:
        """Return the image that the file `fd` holds already; uint8 `types` by pfn, XTAB = none.

        It is for reading only.
        """
        image = cls.__new__(cls)
        image.nr_pages = len(types)
        image._marks = np.where(POPULATED[types], types + np.uint8(1), np.uint8(0))
        image._fd = fd
        image._staging = Staging()
        return image

    def populate(self, batch: PageBatch) -> list[memoryview]:
        """Return staging views for the pages of `batch` that carry data, one per run."""
        pfns = batch.with_data()
        base = self._staging.room(len(pfns))
        views = []
        start = 0
        for count in runs(pfns)[1].tolist():
            views.append(base[start : start + count * PAGE_SIZE])
            start += count * PAGE_SIZE
        return views

    def store(self, batch: PageBatch, views: Sequence[memoryview]) -> None:
        """Write the pages of `batch`, and remember or forget its frames."""
        self._reach(int(batch.pfns.max(initial=0)) + 1)
        firsts = runs(batch.with_data())[0].tolist()
        for first, view in zip(firsts, views, strict=True):
            _write_all(self._fd, view, first * PAGE_SIZE)
        exists = POPULATED[batch.types]
        self._marks[batch.pfns[exists]] = batch.types[exists] + np.uint8(1)

    def _reach(self, nr_pages: int) -> None:
        if nr_pages <= self.nr_pages:
            return
        if nr_pages > len(self._marks):
            marks = np.zeros(max(nr_pages, 2 * len(self._marks)), np.uint8)
            marks[: len(self._marks)] = self._marks
            self._marks = marks
        self.nr_pages = nr_pages
        os.ftruncate(self._fd, nr_pages * PAGE_SIZE)

    def differing(self, batch: PageBatch, views: Sequence[memoryview]) -> Pfns:
        """Return the pfns of `batch` whose pages are not what is stored."""
        different = []
        for first, view in zip(runs(batch.with_data())[0].tolist(), views, strict=True):
            held = np.frombuffer(self._read(first, len(view) // PAGE_SIZE), np.uint8)
            came = np.frombuffer(view, np.uint8)
            pages = (held != came).reshape(-1, PAGE_SIZE).any(axis=1)
            different.append(np.flatnonzero(pages).astype(np.uint64) + np.uint64(first))
        return np.concatenate(different) if different else np.zeros(0, np.uint64)

    def drop(self, pfns: Pfns) -> None:
        """Forget frames, and make holes of them."""
        held = pfns[self._marks[pfns] != 0]
        self._marks[held] = 0
        for first, count in zip(*runs(held), strict=True):
            self._punch(int(first) * PAGE_SIZE, int(count) * PAGE_SIZE)

    @property
    def present(self) -> Pfns:
        """The pfns that have a frame, ascending."""
        return np.flatnonzero(self._marks).astype(np.uint64)

    def count_of(self, page_type: PageType) -> int:
        """Return how many frames are of a type."""
        return int(np.count_nonzero(self._marks == page_type + 1))

    def sha256(self) -> str:
        """Return the sum over every present frame, ascending: u64 little-endian pfn, 4096 bytes.

        Frames sent without data (XALLOC, BROKEN) count as zeros.
        """
        digest = hashlib.sha256()
        block = np.empty((_HASH_PAGES, 8 + PAGE_SIZE), np.uint8)
        for first, count in self._present_runs():
            pfns = np.arange(first, first + count, dtype="<u8")
            block[:count, :8] = pfns.view(np.uint8).reshape(count, 8)
            pages = np.frombuffer(self._read(first, count), np.uint8)
            block[:count, 8:] = pages.reshape(count, PAGE_SIZE)
            digest.update(block[:count].data)
        return digest.hexdigest()

    def _present_runs(self) -> Iterator[tuple[int, int]]:
        for first, count in zip(*(array.tolist() for array in runs(self.present)), strict=True):
            for start in range(first, first + count, _HASH_PAGES):
                yield start, min(_HASH_PAGES, first + count - start)

    def _read(self, first: int, count: int) -> bytearray:
        data = bytearray(count * PAGE_SIZE)
        # An existing file may end before it: frames without data, which are zeros.
        read_at(self._fd, memoryview(data), first * PAGE_SIZE)
        return data

    def _punch(self, offset: int, length: int) -> None:
        call = _libc.fallocate
        call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if call(self._fd, _PUNCH_HOLE, offset, length):  # a file system without holes
            zeros = bytes(PAGE_SIZE)
            for start in range(offset, offset + length, PAGE_SIZE):
                os.pwrite(self._fd, zeros, start)


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
