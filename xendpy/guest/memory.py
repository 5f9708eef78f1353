"""A guest's memory: one sparse file or memfd, mapped; frame n lies at n * 4096.

Holes of the file are frames that do not exist or hold only zeros, so no table is needed. A frame
is allocated before a view of it is handed out: writing to a hole on a full disk would be SIGBUS
for the whole daemon. The file grows with the pfns asked for, whatever size was expected: an HVM
guest of 24 MiB has frames just below 4 GiB.

A guest on its way in is written, not mapped: the kernel then neither clears a page before it is
filled nor takes a fault for it. Measured in Python 3.11 on two shared cores (512 MiB in batches of
4 MiB from one buffer, GiB per second of processor time): pwrite 1.4-1.9 to a memfd, 1.7-1.9 to
ext4; a copy through the map 0.7-0.9 and 0.4-2.0; the same after posix_fallocate 0.7-1.0 and
0.4-1.2; MADV_POPULATE_WRITE alone 0.8-1.1 and 2.6-3.0.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

import numpy as np
from numpy.typing import NDArray

from xendpy.errors import OutOfMemory
from xendpy.guest.pages import PAGE_SHIFT, PAGE_SIZE, Pfns, runs
from xendpy.guest.writeback import WriteBack

NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM))
FIRST_MAP_PAGES = 256
WORDS = PAGE_SIZE // 8

# Punching costs about 0.13 ms a hole on ext4, as much as receiving 64 pages: shorter runs of zero
# pages stay allocated.
HOLE_PAGES = 64

# A batch of more runs than this gets whole chunks: an extent per page cost 16 ms a batch of 1024
# scattered pages on ext4, chunks cost 1-2 ms. `drop_all_but` frees what is never asked for.
SCATTERED_RUNS = 16
CHUNK_PAGES = 256

_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02  # linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class GuestMemory:
    """A guest's frames by number. One thread at a time; `close` may be called again."""

    def __init__(self, fd: int) -> None:
        """Map the open file `fd`, which belongs to this object from here on."""
        self._fd = fd
        self._nr_pages = os.fstat(fd).st_size >> PAGE_SHIFT
        self._capacity = 0
        self._allocated: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._nr_allocated = 0
        self._can_punch = _fallocate is not None
        self._write_back = WriteBack(fd)
        try:
            self.reserve(max(self._nr_pages, FIRST_MAP_PAGES))
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def anonymous(cls, name: str) -> GuestMemory:
        """Return empty memory that lives as long as its file descriptors and maps."""
        return cls(os.memfd_create(name, os.MFD_CLOEXEC))

    @property
    def fd(self) -> int:
        """The file behind the map: for passing on, never for closing."""
        return self._fd

    @property
    def nr_pages(self) -> int:
        """The highest pfn that was ever asked for + 1."""
        return self._nr_pages

    @property
    def pages(self) -> NDArray[np.uint8]:
        """The memory as uint8[n, 4096], n >= nr_pages.

        Reading is always safe; write only to frames that `views` was asked for. Ask again after
        every `views`, which may have moved the map.
        """
        return self._pages

    @property
    def allocated_pages(self) -> int:
        """How many frames were given room and still have it."""
        return self._nr_allocated

    def reserve(self, nr_pages: int) -> None:
        """Map at least `nr_pages`, which allocates nothing; views in use keep the old map.

        Raises:
            OutOfMemory: the file system or the address space has no such size.
        """
        if nr_pages <= self._capacity:
            return
        capacity = max(nr_pages, 2 * self._capacity)
        try:
            os.ftruncate(self._fd, capacity << PAGE_SHIFT)
            self._map(capacity)
        except OSError as error:
            raise self._out_of_room(capacity << PAGE_SHIFT, error) from error
        allocated = np.zeros(capacity, np.bool_)
        allocated[: len(self._allocated)] = self._allocated
        self._allocated = allocated

    def views(self, pfns: Pfns) -> list[memoryview]:
        """Return writable views of `pfns`, one per contiguous run, in the order given.

        Raises:
            OutOfMemory: no room; frames allocated on the way stay.
        """
        if not len(pfns):
            return []
        highest = int(pfns.max()) + 1
        self.reserve(highest)
        self._nr_pages = max(self._nr_pages, highest)
        self._allocate(pfns)
        return self._slices(pfns)

    def read(self, pfns: Pfns) -> list[memoryview]:
        """Return views of `pfns`, each below `nr_pages`, without allocating; holes are zeros."""
        if len(pfns) and int(pfns.max()) >= self._nr_pages:
            raise ValueError(f"pfn {int(pfns.max()):#x} is beyond {self._nr_pages:#x} pages")
        return self._slices(pfns)

    def write(self, pfn: int, data: bytes | memoryview) -> None:
        """Store `data` from the start of frame `pfn` on."""
        count = -(-len(data) // PAGE_SIZE)
        if count:
            (view,) = self.views(np.arange(pfn, pfn + count, dtype=np.uint64))
            view[: len(data)] = data

    def store(self, pfns: Pfns, data: memoryview) -> int:
        """Write `data`, 4096 bytes for each of `pfns`, and return how many hold only zeros.

        Zeros take no room where none was given, and long runs of them become holes. Starts
        write-back, and waits for the disk when more than 256 MiB are not yet on it.

        Raises:
            OutOfMemory: no room.
        """
        if not len(pfns):
            return 0
        highest = int(pfns.max()) + 1
        self.reserve(highest)
        self._nr_pages = max(self._nr_pages, highest)
        is_zero = zero_pages(data)
        nr_zeros = int(np.count_nonzero(is_zero))
        if nr_zeros:
            self._punch(pfns[is_zero & self._allocated[pfns]], shortest=HOLE_PAGES)
            kept = np.flatnonzero(~is_zero | self._allocated[pfns])
        else:
            kept = np.arange(len(pfns))
        self._write_frames(pfns, kept, data)
        return nr_zeros

    def drop(self, pfns: Pfns) -> None:
        """Free frames: they read as zeros, and take no room where the file system can."""
        inside = pfns[pfns < self._nr_pages]
        # Zeros written to a hole would allocate it, or be SIGBUS.
        for start, count in self._punch(inside[self._allocated[inside]], shortest=1):
            self._pages[start : start + count] = 0

    def drop_all_but(self, present: NDArray[np.bool_]) -> None:
        """Free every frame that `views` gave out and that bool[n] `present` does not name."""
        gone = self._allocated.copy()
        gone[: len(present)] &= ~present[: len(gone)]
        self.drop(np.flatnonzero(gone).astype(np.uint64))

    def finish(self, nr_pages: int) -> None:
        """Cut the file to `nr_pages`, growing it if need be. Does not sync."""
        self.reserve(nr_pages)
        os.ftruncate(self._fd, nr_pages << PAGE_SHIFT)
        self._nr_pages = nr_pages
        self._cut(nr_pages)
        self._allocated = self._allocated[:nr_pages]
        self._nr_allocated = int(np.count_nonzero(self._allocated))

    def close(self) -> None:
        """Let go of file and map; views that are still in use keep the map until they go."""
        self._map(0)
        fd, self._fd = self._fd, -1
        self._nr_pages = self._capacity = 0
        if fd >= 0:
            os.close(fd)

    def _map(self, capacity: int) -> None:
        # The old map is never closed by hand: that raises while a view lives. It goes with the
        # last of them.
        if capacity:
            self._view = memoryview(mmap.mmap(self._fd, capacity << PAGE_SHIFT))
        else:
            self._view = memoryview(bytearray())
        self._pages: NDArray[np.uint8] = np.frombuffer(self._view, np.uint8).reshape(-1, PAGE_SIZE)
        self._capacity = capacity

    def _cut(self, nr_pages: int) -> None:
        """Forget what is mapped beyond `nr_pages`.

        The map itself stays: making another took 30 ms for 256 MiB, in the guest's downtime.
        """
        self._view = self._view[: nr_pages << PAGE_SHIFT]
        self._pages = self._pages[:nr_pages]
        self._capacity = nr_pages

    def _slices(self, pfns: Pfns) -> list[memoryview]:
        starts, counts = runs(pfns)
        first = starts << np.uint64(PAGE_SHIFT)
        end = first + (counts << np.uint64(PAGE_SHIFT))
        view = self._view
        return [view[a:b] for a, b in zip(first.tolist(), end.tolist(), strict=True)]

    def _allocate(self, pfns: Pfns) -> None:
        missing: Pfns = pfns[~self._allocated[pfns]]
        starts, counts = runs(missing)
        if len(starts) > SCATTERED_RUNS:
            try:
                self._allocate_runs(*runs(self._chunks(missing)))
                return
            except OutOfMemory:  # no room for the neighbours, perhaps for the frames themselves
                missing = pfns[~self._allocated[pfns]]
                starts, counts = runs(missing)
        self._allocate_runs(starts, counts)

    def _chunks(self, pfns: Pfns) -> Pfns:
        """Return the frames not yet allocated of every chunk that holds one of `pfns`."""
        size = np.uint64(CHUNK_PAGES)
        first = np.unique(pfns // size) * size
        frames = (first[:, None] + np.arange(CHUNK_PAGES, dtype=np.uint64)).ravel()
        frames = frames[frames < self._capacity]
        wanted: Pfns = frames[~self._allocated[frames]]
        return wanted

    def _allocate_runs(self, starts: Pfns, counts: Pfns) -> None:
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            try:
                os.posix_fallocate(self._fd, start << PAGE_SHIFT, count << PAGE_SHIFT)
            except OSError as error:
                raise self._out_of_room(count << PAGE_SHIFT, error) from error
            self._allocated[start : start + count] = True
            self._nr_allocated += count

    def _write_frames(self, pfns: Pfns, chosen: NDArray[np.intp], data: memoryview) -> None:
        if not len(chosen):
            return
        frames = pfns[chosen]
        neighbours = (np.diff(frames) == 1) & (np.diff(chosen) == 1)
        cuts = np.flatnonzero(~neighbours) + 1
        first = np.concatenate((np.zeros(1, np.intp), cuts))
        count = np.diff(np.append(first, len(chosen))) << PAGE_SHIFT
        at = (frames[first] << np.uint64(PAGE_SHIFT)).tolist()
        begin = chosen[first] << PAGE_SHIFT
        end = (begin + count).tolist()
        for offset, a, b in zip(at, begin.tolist(), end, strict=True):
            self._write_run(offset, data[a:b])
        self._nr_allocated += len(frames) - int(np.count_nonzero(self._allocated[frames]))
        self._allocated[frames] = True
        self._write_back.note(int(frames.min()), int(frames.max()) + 1, len(frames))

    def _write_run(self, offset: int, data: memoryview) -> None:
        try:
            done = os.pwrite(self._fd, data, offset)
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], offset + done)
        except OSError as error:
            raise self._out_of_room(len(data), error) from error

    def _punch(self, pfns: Pfns, *, shortest: int) -> list[tuple[int, int]]:
        """Make holes of the runs of at least `shortest` pages; return those that failed."""
        failed = []
        starts, counts = runs(pfns)
        long_enough = counts >= shortest
        chosen = zip(starts[long_enough].tolist(), counts[long_enough].tolist(), strict=True)
        for start, count in chosen:
            if self._can_punch and self._punch_run(start, count):
                self._allocated[start : start + count] = False
                self._nr_allocated -= count
            else:
                failed.append((start, count))
        return failed

    def _punch_run(self, start: int, count: int) -> bool:
        assert _fallocate is not None
        offset, length = start << PAGE_SHIFT, count << PAGE_SHIFT
        if _fallocate(self._fd, _KEEP_SIZE_PUNCH_HOLE, offset, length) == 0:
            return True
        if ctypes.get_errno() in (errno.EOPNOTSUPP, errno.ENOSYS):
            self._can_punch = False
        return False

    def _out_of_room(self, wanted_bytes: int, error: OSError) -> Exception:
        if error.errno not in NO_ROOM:
            return error
        stat = os.fstatvfs(self._fd)
        return OutOfMemory(
            f"no room for {wanted_bytes >> 10} KiB of guest memory: {os.strerror(error.errno)}",
            wanted_bytes=wanted_bytes,
            free_bytes=stat.f_bavail * stat.f_frsize,
        )


def zero_pages(data: memoryview) -> NDArray[np.bool_]:
    """Return bool[n]: which of the n whole pages in `data` hold only zeros."""
    words = np.frombuffer(data, np.uint64).reshape(-1, WORDS)
    # Most pages are told by their first word; the rest is looked at whole.
    is_zero: NDArray[np.bool_] = words[:, 0] == 0
    candidates = np.flatnonzero(is_zero)
    if len(candidates) == len(words):
        np.logical_not(words.any(axis=1), out=is_zero)
    elif len(candidates):
        is_zero[candidates] = ~words[candidates].any(axis=1)
    return is_zero
