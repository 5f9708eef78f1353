"""The bulk path's language: a decoder says where its next bytes must land.

A decoder is a generator. It yields steps; whoever drives it answers each:

    Take(count)      exactly `count` bytes of the wire, as bytes (control data, bounded)
    TakeRest(limit)  everything up to the end of the stream, at most `limit` bytes
    Tell()           the offset of the next byte, from the first byte of the payload
    Populate(batch)  writable views of guest memory, one per contiguous run, in stream order,
                     covering the frames of `batch` that carry data
    Fill(views)      nothing: the views are full now
    Passed()         nothing: what was taken since the last record holds no news for the guest
    any Record       nothing: it is news for the guest

Nothing is ever read ahead, so the stream may change hands at any record boundary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, TypeAlias, TypeVar

from xendpy.guest.pages import PageBatch
from xendpy.stream.records import Record

T = TypeVar("T")

MAX_RECORD = 128 << 20  # bytes; Xen's REC_LENGTH_MAX since 4.14


@dataclass(frozen=True, slots=True)
class Take:
    """Ask the wire for exactly `count` bytes."""

    count: int


@dataclass(frozen=True, slots=True)
class TakeRest:
    """Ask the wire for all bytes up to its end; more than `limit` is the peer's fault."""

    limit: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Ask for the offset of the next byte."""


@dataclass(frozen=True, slots=True)
class Populate:
    """Ask the guest for memory to receive `batch` into."""

    batch: PageBatch


@dataclass(frozen=True, slots=True)
class Fill:
    """Ask the wire to fill `views`, in order."""

    views: Sequence[memoryview]


@dataclass(frozen=True, slots=True)
class Passed:
    """Say that nobody needs what was taken since the last record."""


Step: TypeAlias = Take | TakeRest | Tell | Populate | Fill | Passed | Record
Steps: TypeAlias = Generator[Step, Any, T]


def take(count: int) -> Steps[bytes]:
    """Return the next `count` bytes of the wire."""
    if not 0 <= count <= MAX_RECORD:
        raise AssertionError(f"take({count}): the caller must check lengths first")
    data: bytes = (yield Take(count)) if count else b""
    return data


def take_rest(limit: int) -> Steps[bytes]:
    """Return all bytes up to the end of the stream."""
    data: bytes = yield TakeRest(limit)
    return data


def tell() -> Steps[int]:
    """Return the offset of the next byte."""
    offset: int = yield Tell()
    return offset


def unpack(layout: Struct) -> Steps[tuple[Any, ...]]:
    """Return the next bytes of the wire as `layout` reads them."""
    return layout.unpack((yield Take(layout.size)))


def populate(batch: PageBatch) -> Steps[Sequence[memoryview]]:
    """Return writable views for the frames of `batch` that carry data."""
    views: Sequence[memoryview] = yield Populate(batch)
    return views
