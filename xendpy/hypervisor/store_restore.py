"""A guest on its way into the embedded store."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import time
from typing import BinaryIO

import numpy as np

from xendpy.errors import HypervisorError
from xendpy.guest.domain import Domain
from xendpy.guest.memory import GuestMemory
from xendpy.guest.pages import PAGE_SIZE, PageBatch, Pfns
from xendpy.guest.rounds import RoundCounter
from xendpy.guest.staging import Staging
from xendpy.hypervisor import recordfile
from xendpy.hypervisor.pagetypes import PageTypes
from xendpy.hypervisor.storedimage import MEMORY, RECORDS, REST, TYPES, ImageState, StoredImage
from xendpy.hypervisor.storedir import StoreDirectory, translated
from xendpy.stream.records import End, Ending, Pages, Record, StreamStart, UnmappedPfns, Verify

log = logging.getLogger(__name__)

NAMED_DIFFERENCES = 16  # pfns a report names


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What has come so far. Pages are counted as often as they came, in `nr_batches` batches.

    `differing_pages` of the `verified_pages` were not what had come before; `differing_pfns` are
    the first of them.
    """

    nr_batches: int = 0
    pages: int = 0
    zero_pages: int = 0
    rounds: int = 0
    verified_pages: int = 0
    differing_pages: int = 0
    differing_pfns: tuple[int, ...] = ()


class StoreRestore:
    """Takes one guest in. `report` may be read from any thread; it is replaced, never changed."""

    def __init__(
        self,
        directory: StoreDirectory,
        image: StoredImage,
        on_whole: Callable[[StoredImage], Domain],
        memory: GuestMemory | None = None,
    ) -> None:
        """Create the files of `image`; `on_whole` enters the guest among those that are here.

        `memory` is received into, in the place of a file.
        """
        self.report = RestoreReport()
        self._directory = directory
        self._durable = directory.durable
        self._image = image
        self._on_whole = on_whole
        self._rounds = RoundCounter()
        self._unmapped: list[Pfns] = []
        self._staging = Staging()
        self._staged: Sequence[memoryview] = ()
        self._verifying = False
        self._cancelled = False
        self._settled = False
        self._precious = False
        self._config_synced = False
        path = image.path
        self._memory = memory or GuestMemory(self._durable.create(path / MEMORY))
        self._types = PageTypes.create(path / TYPES, self._durable)
        self._records = self._durable.create(path / RECORDS)
        self._durable.append(self._records, path / RECORDS, recordfile.MAGIC)

    @property
    def allocated_bytes(self) -> int:
        """The room the guest's memory has on disk. Any thread."""
        return self._memory.allocated_pages * PAGE_SIZE

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        """Return staging memory for `batch`; `apply` writes it to the guest's."""
        self._check()
        self._staged = self._staging.view(batch)
        return self._staged

    def apply(self, record: Record) -> None:
        """Take one record in."""
        self._check()
        with translated("restore", self._directory):
            match record:
                case Pages(batch) if self._verifying:
                    self._compare(batch)
                case Pages(batch):
                    self._arrived(batch)
                case Verify():
                    self._verifying = True
                case Ending():
                    self._rounds.ending()
                    self._count_rounds()
                case End():
                    pass
                case _:
                    self._take(record)

    def complete(self) -> Domain:
        """Make the guest durable, then whole in one step; return it, paused."""
        self._check()
        with translated("restore", self._directory):
            self._finish()
            self._sync()
            image = replace(self._image, state=replace(self._state(), first_round=True))
            if image.state != self._image.state:  # else noted so at the end of the first round
                self._directory.write_state(image)
            image = self._directory.settle(image)
        self._settled = True
        return self._on_whole(image)

    def _finish(self) -> None:
        for pfns in self._unmapped:
            self._types.remove(pfns)
        self._memory.drop_all_but(self._types.present().flags)
        self._memory.finish(self._types.nr_pages)
        self._types.finish()

    def keep(self, reason: str) -> str:
        """Keep what has come as NAME.partial and return where; the session takes no more."""
        if self._settled:
            raise ValueError("the guest is whole, or kept already")
        # Nobody else may have this guest any more: what fails from here on removes nothing.
        self._precious = True
        with translated("keep", self._directory):
            try:
                self._types.finish()
                self._sync()
            except OSError as error:
                reason = f"{reason}; not all of it is on disk: {error.strerror or error}"
            state = replace(self._state(), reason=reason, kept_time_s=time())
            self._image = replace(self._image, state=state)
            try:
                path = self._directory.keep(self._image)
            except OSError as error:
                path, disk = self._image.path, error.strerror or str(error)
                log.error("%s is kept where it came in, and no note of it: %s", path, disk)
                where = (
                    f"{path} ({disk}): copy it away before that file system is unmounted; a start"
                    " that can write there makes a partial guest of it"
                )
            else:
                where = str(path)
        self._image = replace(self._image, path=path)
        self._settled = True
        return where

    def rest(self) -> BinaryIO:
        """Return a file beside the partial guest for what nobody decoded; the caller closes it."""
        return open(self._image.path / REST, "ab", buffering=0)

    def cancel(self) -> None:
        """Let the next call fail. Any thread."""
        self._cancelled = True

    def close(self) -> None:
        """Let go of the files; a guest neither whole nor kept goes. May be called again."""
        self._close_memory()
        self._types.close()
        if self._records >= 0:
            os.close(self._records)
            self._records = -1
        if self._precious and not self._settled:
            self._settled = True
            log.error(
                "%s could not be kept in its place: copy it away before the next start",
                self._image.path,
            )
        elif not self._settled:
            self._settled = True
            try:
                self._directory.discard(self._image.path)
            except OSError as error:
                # What ended the arrival must reach its peer; the next start clears this away.
                log.warning("%s is left behind: %s", self._image.path, error)

    def _close_memory(self) -> None:
        self._memory.close()

    def _check(self) -> None:
        if self._cancelled:
            raise HypervisorError("the guest's arrival was cancelled", operation="restore")
        if self._settled:
            raise ValueError("the session is over")

    def _arrived(self, batch: PageBatch) -> None:
        pfns = batch.with_data()
        zeros = self._memory.store(pfns, self._staged[0]) if len(pfns) else 0
        self._types.update(batch.pfns, batch.types)
        self._rounds.add(pfns)
        report = self.report
        self.report = replace(
            report,
            nr_batches=report.nr_batches + 1,
            pages=report.pages + len(pfns),
            zero_pages=report.zero_pages + zeros,
        )
        self._count_rounds()

    def _count_rounds(self) -> None:
        if self.report.rounds != self._rounds.rounds:
            self.report = replace(self.report, rounds=self._rounds.rounds)
        if self._rounds.first_round_complete and not self._image.state.first_round:
            self._image = replace(self._image, state=replace(self._state(), first_round=True))
            self._note_first_round()

    def _note_first_round(self) -> None:
        # The files first: the note says that they are worth keeping.
        self._sync()
        self._directory.write_state(self._image)

    def _state(self) -> ImageState:
        report = self.report
        return replace(self._image.state, rounds=report.rounds, pages=report.pages)

    def _take(self, record: Record) -> None:
        if not recordfile.is_stored(record):
            raise HypervisorError(f"the store cannot keep a {type(record).__name__} record")
        match record:
            case StreamStart(p2m_size=nr_pages):
                self._memory.reserve(nr_pages)
                self._types.reserve(nr_pages)
            case UnmappedPfns(pfns):
                self._unmapped.append(pfns)
        data = recordfile.encode(record)
        self._durable.append(self._records, self._image.path / RECORDS, data)

    def _sync(self) -> None:
        self._durable.sync(self._memory.fd, self._image.path / MEMORY)
        self._sync_small()

    def _sync_small(self) -> None:
        path = self._image.path
        if not self._config_synced:
            self._directory.sync_config(self._image)
            self._config_synced = True
        self._durable.sync(self._types.fd, path / TYPES)
        self._durable.sync(self._records, path / RECORDS)
        self._durable.sync_dir(path)

    def _compare(self, batch: PageBatch) -> None:
        pfns = batch.with_data()
        data = self._staged[0] if len(pfns) else b""
        came = np.frombuffer(data, np.uint64).reshape(-1, PAGE_SIZE // 8)
        known = pfns < self._memory.nr_pages
        differs = ~known
        stored = self._memory.pages.view(np.uint64)[pfns[known]]
        differs[known] = (stored != came[known]).any(axis=1)
        wrong = pfns[differs]
        report = self.report
        self.report = replace(
            report,
            nr_batches=report.nr_batches + 1,
            verified_pages=report.verified_pages + len(pfns),
            differing_pages=report.differing_pages + len(wrong),
            differing_pfns=(*report.differing_pfns, *wrong.tolist())[:NAMED_DIFFERENCES],
        )
