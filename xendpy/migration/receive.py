"""Drive a decoder: bytes from a source, pages and records to a sink.

This is all that lies between a format (`stream`) and a guest (`hypervisor`), in either a
relocation, a restore from a file or an inspection. Blocking.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Protocol, TypeVar

from xendpy.errors import StreamError, StreamTruncated
from xendpy.guest.pages import PageBatch
from xendpy.stream.records import Record
from xendpy.stream.steps import Fill, Passed, Populate, Step, Steps, Take, TakeRest, Tell

T = TypeVar("T")

IOV_MAX = 1024  # Linux, uapi/linux/uio.h UIO_MAXIOV
REST_PIECE = 1 << 20  # bytes read at once where the length is not known


class Source(Protocol):
    """Where the stream comes from; `offset` is that of the next byte. Nothing reads ahead.

    Each method raises StreamTruncated if the stream ends early, or its own errors.
    """

    @property
    def offset(self) -> int: ...

    def recv_into(self, views: Sequence[memoryview]) -> None:
        """Fill `views` in order."""
        ...

    def recv_exactly(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        ...

    def recv_rest(self, limit: int) -> bytes:
        """Return all bytes up to the end; more than `limit` is a StreamError."""
        ...


class OpenSource(Source, Protocol):
    """A source that can also be read on to its end without knowing what comes."""

    def recv_some(self, view: memoryview) -> int:
        """Read at least one byte into `view`, return how many; 0 = the end."""
        ...


class Sink(Protocol):
    """Where the guest goes: what a RestoreSession has of it."""

    def populate(self, batch: PageBatch) -> Sequence[memoryview]: ...

    def apply(self, record: Record) -> None: ...


def _nothing() -> None:
    """Take no note."""


def drive(
    steps: Steps[T], source: Source, sink: Sink, *, passed: Callable[[], None] = _nothing
) -> T:
    """Answer every step of a decoder and return what it returns.

    `passed` is called when what was taken since the last record holds no news for the guest.

    An early end is thrown into the decoder, which may say better what was cut; everything else
    that source or sink raise ends the decoder and goes on to the caller.
    """
    try:
        step = next(steps)
        while True:
            try:
                answer = _answer(step, source, sink, passed)
            except StreamTruncated as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        steps.close()


def _answer(step: Step, source: Source, sink: Sink, passed: Callable[[], None]) -> Any:
    match step:
        case Take(count):
            return source.recv_exactly(count)
        case Populate(batch):
            return sink.populate(batch)
        case Fill(views):
            return source.recv_into(views)
        case Tell():
            return source.offset
        case TakeRest(limit):
            return source.recv_rest(limit)
        case Passed():
            return passed()
        case _:
            return sink.apply(step)


class NoGuest:
    """A sink for decoders that yield neither pages nor records, as that of the envelope."""

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        raise AssertionError(f"{len(batch)} pages where no memory is")

    def apply(self, record: Record) -> None:
        raise AssertionError(f"{type(record).__name__} where no guest is")


class FileSource:
    """A stream in a file, from the descriptor's position on; the caller closes `fd`.

    `offset` counts from that position.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.offset = 0

    def recv_into(self, views: Sequence[memoryview]) -> None:
        """Fill `views` from the file, without a copy between."""
        todo = [view.cast("B") for view in views if view.nbytes]
        ends = list(accumulate(view.nbytes for view in todo))
        start, done, index = self.offset, 0, 0
        while index < len(todo):
            count = os.readv(self._fd, todo[index : index + IOV_MAX])
            if not count:
                raise StreamTruncated(offset=start, wanted=ends[-1], got=done)
            done += count
            self.offset += count
            index = bisect_right(ends, done)
            if index < len(todo):
                left = ends[index] - done
                todo[index] = todo[index][todo[index].nbytes - left :]

    def recv_exactly(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        data = bytearray(count)
        self.recv_into([memoryview(data)])
        return bytes(data)

    def recv_some(self, view: memoryview) -> int:
        """Read into `view`; 0 = end of file."""
        count = os.readv(self._fd, [view])
        self.offset += count
        return count

    def recv_rest(self, limit: int) -> bytes:
        """Return the rest of the file."""
        return read_rest(self, limit)


def read_rest(source: OpenSource, limit: int) -> bytes:
    """Return everything `source` gives up to its end.

    Raises:
        StreamError: more than `limit` bytes.
    """
    start, pieces, total = source.offset, list[bytes](), 0
    piece = memoryview(bytearray(REST_PIECE))
    while count := source.recv_some(piece):
        total += count
        if total > limit:
            raise StreamError(f"more than {limit} bytes up to the end", offset=start)
        pieces.append(bytes(piece[:count]))
    return b"".join(pieces)
