"""Page batches of the legacy image: a count, that many entries, a page for each with data.

An entry is (type << 28) | pfn in a UL. 3.0.x on 64 bits sign-extends it. The number in an XTAB
entry means nothing (0 since 4.1, a source mfn in PV streams before): such entries are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from xendpy.errors import RecordError, UnsupportedStream
from xendpy.guest.pages import (
    HAS_DATA,
    KNOWN,
    MAX_BATCH,
    PAGE_SIZE,
    PageBatch,
    PageType,
    Pfns,
    Types,
)
from xendpy.stream.legacy_dialect import Dialect
from xendpy.stream.legacy_format import MARKER, UL_DTYPE
from xendpy.stream.records import Pages
from xendpy.stream.steps import Fill, Steps, populate, take

TYPE_SHIFT = 28
TYPE_UNIT = 1 << TYPE_SHIFT
PFN_MASK = np.uint64(TYPE_UNIT - 1)
PINNED = 0x8  # types from here on have bit 31 of the entry set
ALL_ONES = 0xFFFF_FFFF


def read_batch(count: int, *, width: int, p2m_size: int, start: int) -> Steps[Pages | None]:
    """Receive the batch whose marker, at `start`, said `count`; None when it holds no frame.

    Everything is checked before guest memory is asked for.

    Raises:
        RecordError: a count, entry or combination that no sender makes.
    """
    if not 1 <= count <= MAX_BATCH:
        raise RecordError(
            "page batch", f"{count} entries, expected 1 to {MAX_BATCH}", offset=start
        )
    raw = yield from take(count * width)
    wire = np.frombuffer(raw, UL_DTYPE[width]).astype(np.uint64)
    batch = _check(wire, p2m_size, start + MARKER.size, width)
    if not len(batch):
        return None
    views = yield from populate(batch)
    if views:
        yield Fill(views)
    return Pages(batch, views)


def _check(wire: Pfns, p2m_size: int, offset: int, width: int) -> PageBatch:
    if int(wire.max()) < min(p2m_size, TYPE_UNIT):
        # Ordinary pages alone: each entry is its own pfn, and one pass tells.
        pfns, types = wire, np.zeros(len(wire), np.uint8)
    else:
        pfns, types = _check_types(wire, p2m_size, offset, width)
    if len(pfns) > 1 and not (pfns[1:] > pfns[:-1]).all():
        _refuse_duplicates(pfns, offset)
    return PageBatch(pfns, types)


def _check_types(wire: Pfns, p2m_size: int, offset: int, width: int) -> tuple[Pfns, Types]:
    types = ((wire >> TYPE_SHIFT) & 0xF).astype(np.uint8)
    pfns = wire & PFN_MASK
    high = wire >> 32

    def require(good: NDArray[np.bool_], expected: str) -> None:
        if good.all():
            return
        bad = int(np.argmin(good))
        reason = f"entry {bad} of {len(wire)} is {int(wire[bad]):#x}, expected {expected}"
        raise RecordError("page batch", reason, offset=offset + bad * width)

    sign_extended = (high == ALL_ONES) & (types >= PINNED)
    require((high == 0) | sign_extended, "upper 32 bits zero, or the sign of bit 31")
    require(KNOWN[types], "a page type 0x0-0x4 or 0x8-0xf in bits 31-28")
    kept = types != PageType.XTAB
    require(~kept | (pfns < p2m_size), f"a pfn below {p2m_size:#x}")
    return (pfns, types) if kept.all() else (pfns[kept], types[kept])


def _refuse_duplicates(pfns: Pfns, offset: int) -> None:
    ordered = np.sort(pfns)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        reason = f"pfn {int(twice[0]):#x} comes twice, expected each pfn once in a batch"
        raise RecordError("page batch", reason, offset=offset)


def encode_pages(pages: Pages, dialect: Dialect, width: int) -> Iterator[bytes | memoryview]:
    """Yield a batch's wire form: headers of ours, the pages as slices of the views given.

    XTAB entries are left out, a batch of more than 1024 is split.

    Raises:
        UnsupportedStream: a pfn or page type that receivers of this dialect do not know.
    """
    pfns, types = pages.batch.pfns, pages.batch.types
    kept = types != PageType.XTAB
    if not kept.all():
        pfns, types = pfns[kept], types[kept]
    if not len(pfns):
        return
    _require_carried(pfns, types, dialect)
    entries = pfns | (types.astype(np.uint64) << TYPE_SHIFT)
    if dialect.sign_extended and width == 8:
        entries[types >= PINNED] |= np.uint64(ALL_ONES << 32)
    wire = entries.astype(UL_DTYPE[width])
    cutter = _Cutter(pages.views)
    for start in range(0, len(wire), MAX_BATCH):
        part = wire[start : start + MAX_BATCH]
        yield MARKER.pack(len(part)) + part.tobytes()
        data = np.count_nonzero(HAS_DATA[types[start : start + MAX_BATCH]])
        yield from cutter.next(int(data) * PAGE_SIZE)
    cutter.finish()


def _require_carried(pfns: Pfns, types: NDArray[np.uint8], dialect: Dialect) -> None:
    if int(pfns.max()) > PFN_MASK:
        raise UnsupportedStream(f"pfn {int(pfns.max()):#x} in a legacy stream")
    unknown = types[~dialect.page_types[types]]
    if len(unknown):
        name = PageType(int(unknown[0])).name
        raise UnsupportedStream(f"page type {name} in a stream for Xen {dialect.release}")


class _Cutter:
    """Deals out the bytes of a row of views, in order, without copying."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = [view for view in views if view.nbytes]
        self._index = 0
        self._offset = 0

    def next(self, count: int) -> Iterator[memoryview]:
        while count:
            assert self._index < len(self._views), "fewer bytes in the views than in the batch"
            view = self._views[self._index]
            piece = view[self._offset : self._offset + count]
            yield piece
            count -= piece.nbytes
            self._offset += piece.nbytes
            if self._offset == view.nbytes:
                self._index, self._offset = self._index + 1, 0

    def finish(self) -> None:
        assert self._index == len(self._views), "more bytes in the views than in the batch"
