"""Write a guest that stands still: its records, in order, into a sink.

The offline half of `xm save`: no rounds, no dirty pages. Blocking; runs in a worker thread. Pages
go from guest memory to the sink as views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from xendpy.hypervisor.base import PageSource, RecordSource
from xendpy.migration.send import Encoder, has_pages
from xendpy.stream.records import Pages, Record


class Sink(Protocol):
    """Where the bytes go; it has taken all of `pieces` when it returns."""

    def write(self, pieces: Sequence[bytes | memoryview]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveReport:
    """What was written: `nr_bytes` of records, the envelope not among them."""

    nr_pages: int
    nr_bytes: int


def save(
    source: PageSource | RecordSource,
    encoder: Encoder,
    sink: Sink,
    *,
    check: Callable[[], None] = lambda: None,
) -> SaveReport:
    """Suspend the guest and write its whole image; the save session is left open.

    `check` is called before every record and raises to end the save early.
    """
    nr_pages = nr_bytes = 0
    for record in _page_records(source) if has_pages(source) else _own_records(source):
        check()
        pieces = [piece for piece in encoder.encode(record) if len(piece)]
        if pieces:
            sink.write(pieces)
        nr_bytes += sum(len(piece) for piece in pieces)
        if isinstance(record, Pages):
            nr_pages += len(record.batch)
    return SaveReport(nr_pages=nr_pages, nr_bytes=nr_bytes)


def _page_records(source: PageSource) -> Iterator[Record]:
    # Suspended before the first record: one round is the whole image, and it is coherent.
    source.suspend()
    yield from source.opening()
    for pfns in source.present().batches():
        yield source.read(pfns)
    yield from source.closing()


def _own_records(source: PageSource | RecordSource) -> Iterator[Record]:
    assert not has_pages(source)
    yield from source.records()  # type: ignore[union-attr]  # TypeGuard narrows one way only
