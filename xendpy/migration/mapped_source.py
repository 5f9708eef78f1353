"""A stream in a file whose pages go on from where they lie.

Converting copies nothing: what is written is the file's own cache. Control data is read, and only
pages are mapped, so that a file which somebody cuts meanwhile is an error of the write, no SIGBUS.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence

from xendpy.errors import StreamTruncated
from xendpy.guest.pages import PAGE_SIZE, PageBatch
from xendpy.migration.receive import FileSource

_POPULATE_READ = 22  # linux/mman-common.h MADV_POPULATE_READ


class MappedSource(FileSource):
    """A FileSource over a regular file that lends its pages; the caller closes `fd`."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        size = os.fstat(fd).st_size
        self._start = os.lseek(fd, 0, os.SEEK_CUR)
        self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else None
        self._view = memoryview(self._map or bytearray()).toreadonly()
        self._lent: memoryview | None = None

    def view(self, batch: PageBatch) -> Sequence[memoryview]:
        """Return the pages of `batch`, which are next in the file; valid as long as the source.

        A decoder that asks for memory gets what it is about to fill.

        Raises:
            StreamTruncated: the file ends before.
        """
        need = len(batch.with_data()) * PAGE_SIZE
        begin = self._start + self.offset
        if begin + need > len(self._view):
            got = max(0, len(self._view) - begin)
            raise StreamTruncated(offset=self.offset, wanted=need, got=got)
        self._lent = self._view[begin : begin + need]
        if not need:
            return []
        self._populate(begin, begin + need)
        return [self._lent]

    def _populate(self, begin: int, end: int) -> None:
        """Map what is about to be written in one call, where each page would take a fault."""
        assert self._map is not None
        first = begin & -mmap.PAGESIZE
        with contextlib.suppress(OSError):  # before Linux 5.14, or a file that was cut
            self._map.madvise(_POPULATE_READ, first, end - first)

    def recv_into(self, views: Sequence[memoryview]) -> None:
        """Pass by what was lent, or read."""
        if len(views) == 1 and views[0] is self._lent:
            os.lseek(self._fd, len(self._lent), os.SEEK_CUR)
            self.offset += len(self._lent)
        else:
            super().recv_into(views)
        self._lent = None
