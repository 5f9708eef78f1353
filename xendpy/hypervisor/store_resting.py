"""A guest at rest on its way out of the embedded store, in the form in which it came.

An image of an old xend's is pages and records, of which a sender of ours makes the stream. One of
libxl's keeps that toolstack's records: it leaves as it came, or is translated as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from xendpy.errors import HypervisorError
from xendpy.guest.domain import DomainConfig
from xendpy.guest.memoryfile import MemoryFile
from xendpy.guest.pages import DirtyBitmap, PageBatch, Pfns
from xendpy.hypervisor import recordfile
from xendpy.hypervisor.pagetypes import PageTypes
from xendpy.hypervisor.store_save import StoreSession
from xendpy.hypervisor.storedimage import MEMORY, RECORDS, TYPES, StoredImage
from xendpy.hypervisor.xlconfig import to_json
from xendpy.hypervisor.xlguest import read_guest
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.stream import legacy_head
from xendpy.stream.libxl import XlHeader
from xendpy.stream.records import (
    CpuidPolicy,
    End,
    MsrPolicy,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    StaticDataEnd,
    StreamStart,
)

OPENING = (StreamStart, PvInfo, CpuidPolicy, MsrPolicy, StaticDataEnd, P2mFrames)


class _Resting(StoreSession):
    """A guest at rest: its files, opened."""

    live = False

    def __init__(
        self,
        image: StoredImage,
        stored: list[Record],
        *,
        on_relinquish: Callable[[], None],
        on_hold: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.config: DomainConfig = image.config
        self._on_relinquish = on_relinquish
        self._on_hold = on_hold
        self._path = image.path
        self._stored = stored
        self._types = PageTypes.load(image.path / TYPES)
        self._memory = MemoryFile(image.path / MEMORY)
        if self._memory.nr_pages < self._types.nr_pages:
            self._memory.close()
            raise HypervisorError(f"{image.path} is damaged: its memory is cut", operation="save")

    def _opening(self) -> Iterator[Record]:
        self._check()
        yield from (record for record in self._stored if isinstance(record, OPENING))

    def _read(self, pfns: Pfns) -> Pages:
        self._check()
        types = self._types.of(pfns)
        batch = PageBatch(pfns, types)
        return Pages(batch, self._memory.read(batch.with_data()))

    def _closing(self) -> Iterator[Record]:
        self._check()
        yield from (record for record in self._stored if not isinstance(record, OPENING))
        self._said_end = True
        yield End()

    def _relinquish(self) -> None:
        self._on_relinquish()

    def _resume(self) -> None:
        pass

    def _hold(self, reason: str) -> None:
        self._on_hold(reason)

    def _release(self) -> None:
        self._memory.close()


class RestingSource(_Resting):
    """A PageSource over a guest at rest: nothing becomes dirty."""

    @property
    def nr_pages(self) -> int:
        return self._types.nr_pages

    def opening(self) -> Iterator[Record]:
        """Yield the stored records that come before memory."""
        return self._opening()

    def present(self) -> DirtyBitmap:
        """Return the frames that exist."""
        return self._types.present()

    def track_dirty(self) -> None:
        """Nothing writes to a guest at rest."""

    def take_dirty(self) -> DirtyBitmap:
        """Return an empty bitmap."""
        return DirtyBitmap(self.nr_pages)

    def read(self, pfns: Pfns) -> Pages:
        """Return the frames, as they were read from the image."""
        return self._read(pfns)

    def suspend(self) -> None:
        """A guest at rest is suspended already."""
        self._check()

    def closing(self) -> Iterator[Record]:
        """Yield the stored records that come after memory, as they came, then End."""
        return self._closing()


class RestingRecords(_Resting):
    """A RecordSource over a guest at rest that came from libxl; its records can be had again."""

    at_rest = True

    @property
    def scratch(self) -> Path:
        return self._path.parent

    def header(self) -> XlHeader:
        """Return the save-file header that an xl of this guest would write.

        Raises:
            DomainError: its configuration has what xl cannot be told.
        """
        guest = read_guest(self.config, GuestRules(confined=False))
        return XlHeader(to_json(guest), is_json=True, is_v2=True)

    def records(self) -> Iterator[Record]:
        """Yield the whole image, each frame once."""
        yield from self._opening()
        for pfns in self._types.present().batches():
            yield self._read(pfns)
        yield from self._closing()

    def release(self) -> None:
        """Do nothing: a guest at rest stands still already."""


def resting_source(
    image: StoredImage,
    *,
    on_relinquish: Callable[[], None],
    on_hold: Callable[[str], None],
) -> RestingSource | RestingRecords:
    """Open a guest at rest, in the form in which it came.

    Raises:
        HypervisorError: its files are damaged.
    """
    stored = recordfile.load(image.path / RECORDS)
    formats = [record.format for record in stored if isinstance(record, StreamStart)]
    kind = RestingSource if formats == [legacy_head.FORMAT] else RestingRecords
    return kind(image, stored, on_relinquish=on_relinquish, on_hold=on_hold)
