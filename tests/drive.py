"""Drive a decoder with bytes, and keep what it says.

`drive_bytes` is the smallest driver there can be; `Recorder` is a guest that remembers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from xendpy.errors import RecordError, StreamTruncated
from xendpy.guest.pages import PAGE_SIZE, PageBatch, PageType, runs
from xendpy.stream.records import Pages, Record, UnmappedPfns, Verify
from xendpy.stream.steps import Fill, Passed, Populate, Steps, Take, TakeRest, Tell

T = TypeVar("T")


class Sink(Protocol):
    def populate(self, batch: PageBatch) -> Sequence[memoryview]: ...

    def apply(self, record: Any) -> object: ...


class Recorder:
    """Remembers every record, with copies of the pages, and the memory they add up to."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.memory: dict[int, bytes] = {}
        self.types: dict[int, int] = {}
        self.different: list[int] = []
        self._verifying = False

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        pfns = batch.with_data()
        view = memoryview(bytearray(len(pfns) * PAGE_SIZE))
        views, start = [], 0
        for length in (runs(pfns)[1] * PAGE_SIZE).tolist():
            views.append(view[start : start + length])
            start += length
        return views

    def apply(self, record: Record) -> None:
        match record:
            case Pages():
                record = Pages(record.batch, [memoryview(bytes(view)) for view in record.views])
                self._store(record)
            case Verify():
                self._verifying = True
            case UnmappedPfns():
                self._forget(record.pfns.tolist())
        self.records.append(record)

    def _store(self, record: Pages) -> None:
        data = b"".join(record.views)
        for n, pfn in enumerate(record.batch.with_data().tolist()):
            content = data[n * PAGE_SIZE : (n + 1) * PAGE_SIZE]
            if not self._verifying:
                self.memory[pfn] = content
            elif self.memory.get(pfn) != content:
                self.different.append(pfn)
        for pfn, kind in zip(record.batch.pfns.tolist(), record.batch.types.tolist(), strict=True):
            self.types[pfn] = kind
            if kind == PageType.XTAB:
                self._forget([pfn])

    def _forget(self, pfns: Iterable[int]) -> None:
        for pfn in pfns:
            self.memory.pop(pfn, None)
            self.types.pop(pfn, None)

    def plain(self) -> list[object]:
        """Return the records in a form that compares by value."""
        return [plain(record) for record in self.records]


class _Wire:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.offset = 0

    def read(self, count: int) -> memoryview:
        piece = self._data[self.offset : self.offset + count]
        if len(piece) < count:
            raise StreamTruncated(offset=self.offset, wanted=count, got=len(piece))
        self.offset += count
        return piece

    def rest(self, limit: int) -> bytes:
        piece = bytes(self._data[self.offset :])
        if len(piece) > limit:
            raise RecordError("rest", f"more than {limit} bytes", offset=self.offset)
        self.offset += len(piece)
        return piece


def drive_bytes(steps: Steps[T], data: bytes, sink: Sink) -> tuple[T, int]:
    """Answer every step; return the decoder's result and the number of bytes it took."""
    wire = _Wire(data)
    try:
        step = next(steps)
        while True:
            try:
                answer = _answer(step, wire, sink)
            except StreamTruncated as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        return stop.value, wire.offset


def _answer(step: object, wire: _Wire, sink: Sink) -> object:
    match step:
        case Take(count):
            return bytes(wire.read(count))
        case TakeRest(limit):
            return wire.rest(limit)
        case Tell():
            return wire.offset
        case Passed():
            return None
        case Populate(batch):
            return sink.populate(batch)
        case Fill(views):
            start, total = wire.offset, sum(view.nbytes for view in views)
            left = len(wire._data) - start
            if left < total:
                raise StreamTruncated(offset=start, wanted=total, got=left)
            for view in views:
                view[:] = wire.read(view.nbytes)
            return None
        case _:
            return sink.apply(step)


def plain(record: Record) -> object:
    """Return a record as (name, values) with arrays as lists and pages as bytes."""
    if isinstance(record, Pages):
        batch = record.batch
        return ("Pages", batch.pfns.tolist(), batch.types.tolist(), b"".join(record.views))
    values = [getattr(record, item.name) for item in dataclasses.fields(record)]
    flat = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    return (type(record).__name__, *flat)
