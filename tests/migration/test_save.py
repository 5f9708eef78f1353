from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.control.fakes import NR_PAGES, FakeHypervisor, FakeSource, guest_config
from xendpy.migration.save import save
from xendpy.stream.records import Pages, Record


class Names:
    """An encoder that says each record's name, and passes pages on as views."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []

    def encode(self, record: Record) -> Iterator[bytes | memoryview]:
        yield type(record).__name__.encode() + b"\n"
        if isinstance(record, Pages):
            self.batches.append((len(record.batch), len(record.views)))
            yield b""
            yield from record.views


class Collector:
    def __init__(self) -> None:
        self.kinds: list[type] = []
        self.lines: list[bytes] = []
        self.nr_bytes = 0

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        self.lines += [bytes(piece) for piece in pieces if isinstance(piece, bytes)]
        self.kinds += [type(piece) for piece in pieces]
        self.nr_bytes += sum(len(piece) for piece in pieces)


def fake_source() -> FakeSource:
    hypervisor = FakeHypervisor()
    domain = hypervisor.add(guest_config("web1"))
    return FakeSource(hypervisor, hypervisor.guests[domain.uuid])


def test_records_come_in_order_once_the_guest_stands_still() -> None:
    source, sink, encoder = fake_source(), Collector(), Names()
    report = save(source, encoder, sink)
    assert source.ended == ["suspend"]
    assert [line.decode().strip() for line in sink.lines] == [
        "StreamStart", "PvInfo", "P2mFrames", "Pages", "Pages",
        "OnlineVcpus", "UnmappedPfns", "VcpuContext", "SharedInfo", "End",
    ]  # fmt: skip
    assert report.nr_pages == NR_PAGES - 16
    assert report.nr_bytes == sink.nr_bytes


def test_contiguous_pages_are_one_view_of_at_most_a_batch() -> None:
    source, sink, encoder = fake_source(), Collector(), Names()
    save(source, encoder, sink)
    assert encoder.batches == [(1024, 1), (NR_PAGES - 16 - 1024, 1)]
    assert sink.kinds.count(memoryview) == 2


def test_empty_pieces_are_not_written() -> None:
    sink = Collector()
    save(fake_source(), Names(), sink)
    assert b"" not in sink.lines


def test_check_ends_the_save() -> None:
    source, sink = fake_source(), Collector()
    calls = iter(range(5))

    def check() -> None:
        if next(calls) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        save(source, Names(), sink, check=check)
    assert len(sink.lines) == 3


def test_toolstacks_own_records_are_passed_through() -> None:
    class Source:
        config = guest_config("web1")

        def records(self) -> Iterator[Record]:
            yield from fake_source().closing()

    sink = Collector()
    save(Source(), Names(), sink)  # type: ignore[arg-type]  # only what save uses
    assert sink.lines[0] == b"OnlineVcpus\n"
    assert len(sink.lines) == 5
