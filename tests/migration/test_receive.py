"""`drive` and its sources."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import recorded
from tests.bytes_source import BytesSource
from tests.drive import Recorder, drive_bytes
from xendpy.errors import HypervisorError, StreamError, StreamTruncated
from xendpy.guest.domain import DomainConfig
from xendpy.guest.pages import PageBatch
from xendpy.migration.receive import FileSource, NoGuest, OpenSource, drive
from xendpy.stream.records import Record
from xendpy.stream.steps import Steps, Take, TakeRest, Tell
from xendpy.stream.xend import decode_body, read_envelope


@pytest.fixture(params=["bytes", "file"])
def source_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    fds: list[int] = []

    def make(data: bytes) -> OpenSource:
        if request.param == "bytes":
            return BytesSource(data)
        path = tmp_path / "stream"
        path.write_bytes(data)
        fds.append(os.open(path, os.O_RDONLY))
        return FileSource(fds[-1])

    yield make
    for fd in fds:
        os.close(fd)


def test_steps_are_answered_by_the_source(source_of) -> None:
    def decoder() -> Steps[list[object]]:
        first = yield Take(3)
        where = yield Tell()
        rest = yield TakeRest(100)
        return [first, where, rest]

    assert drive(decoder(), source_of(b"abcdefg"), NoGuest()) == [b"abc", 3, b"defg"]


def test_views_are_filled_beyond_one_call(source_of) -> None:
    data = bytes(range(256)) * 20
    memory = bytearray(len(data))
    views = [memoryview(memory)[at : at + 2] for at in range(0, len(memory), 2)]
    source = source_of(data)
    source.recv_into(views)
    assert memory == data
    assert source.offset == len(data)


def test_early_end_says_where(source_of) -> None:
    source = source_of(b"0123456789")
    source.recv_exactly(4)
    with pytest.raises(StreamTruncated) as caught:
        source.recv_exactly(10)
    assert (caught.value.offset, caught.value.wanted, caught.value.got) == (4, 10, 6)


def test_rest_has_a_limit(source_of) -> None:
    with pytest.raises(StreamError, match="more than 3 bytes"):
        source_of(b"0123").recv_rest(3)


def test_decoder_may_name_what_was_cut() -> None:
    def decoder() -> Steps[None]:
        try:
            yield Take(10)
        except StreamTruncated as error:
            raise StreamError("signature read") from error

    with pytest.raises(StreamError, match=r"^signature read$"):
        drive(decoder(), BytesSource(b"abc"), NoGuest())


def test_what_the_guest_raises_ends_the_decoder() -> None:
    closed = []

    def decoder() -> Steps[None]:
        try:
            yield from decode_body(config.guest_type)
        finally:
            closed.append(True)

    class Full(Recorder):
        def populate(self, batch: PageBatch) -> Sequence[memoryview]:
            raise HypervisorError("no room")

    wire, _ = recorded.load(recorded.PV64)
    source = BytesSource(wire)
    config = DomainConfig.parse(drive(read_envelope(), source, NoGuest()).config_bytes)
    with pytest.raises(HypervisorError, match="no room"):
        drive(decoder(), source, Full())
    assert closed == [True]


@pytest.mark.parametrize("name", recorded.RELOCATIONS)
def test_recorded_stream_decodes_as_by_hand(source_of, name: str) -> None:
    wire, _ = recorded.load(name)
    source, ours, theirs = source_of(wire), Recorder(), Recorder()
    envelope = drive(read_envelope(), source, NoGuest())
    guest_type = DomainConfig.parse(envelope.config_bytes).guest_type
    drive(decode_body(guest_type), source, ours)
    drive_bytes(decode_body(guest_type), recorded.image(name), theirs)
    assert ours.memory == theirs.memory
    assert [_name(record) for record in ours.records] == [_name(r) for r in theirs.records]
    assert source.offset == len(wire)


def _name(record: Record) -> str:
    return type(record).__name__
