"""A guest on its way in, watched: what has come, what it is worth, and what nobody decoded yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import BinaryIO

from xendpy.errors import RecordError
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.guest.pages import PageBatch
from xendpy.guest.rounds import RoundCounter
from xendpy.hypervisor.base import RestoreSession
from xendpy.migration.progress import DowntimeReport, MigrationProgress, MigrationState
from xendpy.migration.receive import OpenSource
from xendpy.stream.records import (
    EmulatorContext,
    EmulatorSignature,
    End,
    Ending,
    Pages,
    Record,
    StreamStart,
    Verify,
)

QEMU_MAGIC = b"QEVM"  # qemu's savevm.c; xc_domain_restore.c >= 4.0: "Invalid QEMU magic"
PIECE = 1 << 20  # bytes copied at once

Publish = Callable[[MigrationProgress], None]


class RecentBytes:
    """A source that remembers what was taken from it since the guest last took something in."""

    def __init__(self, source: OpenSource) -> None:
        self._source = source
        self._recent: list[bytes] = []
        self._settled = False

    @property
    def offset(self) -> int:
        return self._source.offset

    def recv_into(self, views: Sequence[memoryview]) -> None:
        """Fill guest memory: what announced these pages need not be remembered."""
        self._source.recv_into(views)
        self._recent.clear()

    def recv_exactly(self, count: int) -> bytes:
        """Return the next `count` bytes, remembered."""
        return self._remember(self._source.recv_exactly(count))

    def recv_some(self, view: memoryview) -> int:
        """Read into `view`; 0 = the end."""
        return self._source.recv_some(view)

    def recv_rest(self, limit: int) -> bytes:
        """Return all bytes up to the end, remembered."""
        return self._remember(self._source.recv_rest(limit))

    def settle(self) -> None:
        """The guest has taken in, or needs none of, what was read: forget it at the next read."""
        self._settled = True

    def read_on(self, file: BinaryIO, limit: int) -> int:
        """Write what is remembered and then all that follows to `file`; return its length.

        Stops at `limit` bytes. Raises as the source does, or OSError; what was read is written.
        """
        total = 0
        for data in self._recent if not self._settled else ():
            total += file.write(data)
        piece = memoryview(bytearray(PIECE))
        while total < limit and (count := self._source.recv_some(piece)):
            total += file.write(piece[:count])
        return total

    def _remember(self, data: bytes) -> bytes:
        if self._settled:
            self._recent.clear()
            self._settled = False
        self._recent.append(data)
        return data


class Arrival:
    """The driver's session as `drive` sees it; publishes a snapshot with every batch."""

    def __init__(
        self,
        session: RestoreSession,
        recent: RecentBytes,
        config: DomainConfig,
        progress: MigrationProgress,
        publish: Publish,
    ) -> None:
        self.progress = progress
        self.ending = False
        self._session = session
        self._recent = recent
        self._config = config
        self._publish = publish
        self._rounds = RoundCounter()
        self._verifying = False
        self._emulator: EmulatorContext | None = None
        self._begun_s = time.monotonic()
        self._ending_s: float | None = None
        self._end_s: float | None = None

    @property
    def worth_keeping(self) -> bool:
        """Whether every page of the guest has come at least once."""
        return self._verifying or self._rounds.first_round_complete

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        """Pass on to the driver."""
        return self._session.populate(batch)

    def apply(self, record: Record) -> None:
        """Pass on to the driver, and take note."""
        if isinstance(record, Ending):
            # Before the driver hears of it: should that fail, the sender may have let go.
            self.ending = True
        self._session.apply(record)
        match record:
            case Pages(batch):
                self._count(batch)
            case Ending():
                self._rounds.ending()
                self._ending_s = time.monotonic()
                self._show(MigrationState.STOP_AND_COPY)
                return  # its bytes are those of the record after it
            case StreamStart():
                self._show(MigrationState.PRECOPY, total_pages=record.p2m_size)
            case Verify():
                self._verifying = True
            case EmulatorContext():
                self._emulator = record
            case End():
                self._end_s = time.monotonic()
                self._show(MigrationState.COMPLETING)
        self._recent.settle()

    def check_whole(self) -> None:
        """Check what the end of the stream itself cannot say.

        A xend HVM stream has no length: it may have been cut inside or before its last record.

        Raises:
            RecordError: the device model's state is missing or does not begin as one.
        """
        if self._config.guest_type is not GuestType.HVM:
            return
        if self._emulator is None:
            raise RecordError("device model", "an HVM guest came without its device model's state")
        blob = self._emulator.blob
        # The length-prefixed forms are not checked by Xen either.
        if self._emulator.signature is EmulatorSignature.XEND and blob[:4] != QEMU_MAGIC:
            raise RecordError("device model", f"begins with {blob[:4].hex()}, not with QEVM")

    def downtime(self) -> DowntimeReport | None:
        """Return what this side knows of the downtime, up to this moment: None is nothing."""
        if self._ending_s is None or self._end_s is None:
            return None
        return DowntimeReport(
            last_iteration_s=self._end_s - self._ending_s,
            vcpu_state_s=time.monotonic() - self._end_s,
        )

    def close(self, state: MigrationState, reason: str = "") -> MigrationProgress:
        """Publish and return the last snapshot."""
        if state is MigrationState.DONE:
            self.progress = replace(self.progress, downtime=self.downtime())
        self._show(state, reason=reason)
        return self.progress

    def _count(self, batch: PageBatch) -> None:
        pfns = batch.with_data()
        if not self._verifying:
            self._rounds.add(pfns)
        iteration = max(self._rounds.rounds - 1, 0)
        self._show(self.progress.state, pages=self.progress.pages + len(pfns), iteration=iteration)

    def _show(
        self,
        state: MigrationState,
        *,
        total_pages: int | None = None,
        pages: int | None = None,
        iteration: int | None = None,
        reason: str = "",
    ) -> None:
        now = self.progress
        self.progress = replace(
            now,
            state=state,
            total_pages=now.total_pages if total_pages is None else total_pages,
            pages=now.pages if pages is None else pages,
            iteration=now.iteration if iteration is None else iteration,
            bytes_done=self._recent.offset,
            elapsed_s=time.monotonic() - self._begun_s,
            reason=reason,
        )
        self._publish(self.progress)
