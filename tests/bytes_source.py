"""A stream in memory, as a decoder's source."""

from collections.abc import Sequence

from xendpy.errors import StreamTruncated
from xendpy.migration.receive import read_rest


class BytesSource:
    """Give the bytes of `data`; `offset` is that of the next one."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.offset = 0

    def recv_into(self, views: Sequence[memoryview]) -> None:
        start, wanted = self.offset, sum([view.nbytes for view in views])
        if wanted > len(self._data) - start:
            self._cut(wanted)
        for view in views:
            end = start + view.nbytes
            view[:] = self._data[start:end]
            start = end
        self.offset = start

    def recv_exactly(self, count: int) -> bytes:
        start, end = self.offset, self.offset + count
        if end > len(self._data):
            self._cut(count)
        self.offset = end
        return bytes(self._data[start:end])

    def recv_some(self, view: memoryview) -> int:
        piece = self._data[self.offset : self.offset + view.nbytes]
        view[: len(piece)] = piece
        self.offset += len(piece)
        return len(piece)

    def recv_rest(self, limit: int) -> bytes:
        return read_rest(self, limit)

    def _cut(self, wanted: int) -> None:
        left = len(self._data) - self.offset
        raise StreamTruncated(offset=self.offset, wanted=wanted, got=left)
