"""What an outgoing migration shows while it runs: snapshots, from the worker's news."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from xendpy.guest.pages import PAGE_SIZE
from xendpy.migration.precopy import FIXED_DOWNTIME_S, Suspended
from xendpy.migration.progress import (
    DowntimeReport,
    MigrationProgress,
    MigrationState,
    Round,
    log_begin,
    log_end,
)

RATE_WINDOW_S = 1.0  # the current rate is that of about the last second


class OutgoingWatch:
    """A relocation.outgoing.Watcher; `progress` is replaced by assignment, for any thread."""

    def __init__(self, progress: MigrationProgress) -> None:
        self.progress = progress
        self._begun_s = time.monotonic()
        self._window_s = self._begun_s
        self._window_bytes = 0
        self._first_window = True
        self._in_round = 0
        self._to_send: int | None = progress.total_pages
        self._suspended_s: float | None = None
        self._suspend_took_s: float | None = None
        self._last_round_s: float | None = None
        self._sent_all_s: float | None = None

    def negotiated(self, protocol: str) -> None:
        """The peer has answered; it makes room, and then the guest follows."""
        log_begin(self.progress, "sending", "to")
        self._show(
            state=MigrationState.NEGOTIATING,
            protocol=protocol,
            remaining_pages=self._to_send,
        )

    def sent(self, nr_bytes: int, nr_pages: int) -> None:
        """Some of it has gone to the kernel."""
        if self.progress.state is MigrationState.NEGOTIATING:
            self._window_s = time.monotonic()
            self._show(state=MigrationState.PRECOPY, setup_s=time.monotonic() - self._begun_s)
        self._in_round += nr_pages
        now_s = time.monotonic()
        rate = self.progress.current_bytes_per_s
        done = self.progress.bytes_done + nr_bytes
        window_s = now_s - self._window_s
        if window_s >= RATE_WINDOW_S or (self._first_window and window_s >= RATE_WINDOW_S / 10):
            rate = (done - self._window_bytes) / window_s
        if window_s >= RATE_WINDOW_S:
            self._window_s, self._window_bytes, self._first_window = now_s, done, False
        self._show(
            bytes_done=done,
            pages=self.progress.pages + nr_pages,
            remaining_pages=self._left(),
            current_bytes_per_s=rate,
        )

    def round_done(self, done: Round) -> None:
        """An iteration has ended; what the guest wrote meanwhile is the next one."""
        self._in_round, self._to_send = 0, done.dirtied_pages
        before = self.progress.rounds
        if before and before[-1].dirtied_pages is None:  # a toolstack's: it has just been sent
            written = replace(before[-1], dirtied_pages=done.sent_pages)
            before = (*before[:-1], written)
            self._show(dirty_pages_per_s=done.sent_pages / written.seconds)
        rounds = (*before, done)
        if done.last:  # what the guest wrote, and what was expected, are what they were
            if self._suspended_s is not None:  # else a toolstack's: when it began nobody says
                self._last_round_s = done.seconds
            self._show(iteration=done.index, rounds=rounds, remaining_pages=0)
            return
        self._show(iteration=done.index + 1, rounds=rounds, remaining_pages=done.dirtied_pages)
        if done.dirtied_pages is None:
            return
        pages_per_s = done.sent_pages / done.seconds
        expected = done.dirtied_pages / pages_per_s if pages_per_s else None
        self._show(
            dirty_pages_per_s=done.dirtied_pages / done.seconds,
            expected_downtime_s=None if expected is None else expected + FIXED_DOWNTIME_S,
        )

    def _left(self) -> int | None:
        return None if self._to_send is None else max(0, self._to_send - self._in_round)

    def suspended(self, news: Suspended) -> None:
        """The guest stands still."""
        self._suspended_s = time.monotonic()
        self._suspend_took_s = news.took_s
        self._show(state=MigrationState.STOP_AND_COPY, converged=news.verdict.converged)

    def stands_still(self, since_s: float) -> None:
        """A toolstack's guest stands still, for so long at least."""
        self._suspended_s = time.monotonic() - since_s
        self._show(state=MigrationState.STOP_AND_COPY)

    def handing_over(self) -> None:
        """The last byte is about to go: nothing can be cancelled any more."""
        self._sent_all_s = time.monotonic()
        self._show(state=MigrationState.COMPLETING)

    def running_there(self, resume_s: float) -> None:
        """The target runs it, and says how long unpausing took there."""
        self._show(downtime=self._downtime(resume_s))

    def ended(self, state: MigrationState, reason: str = "") -> None:
        """It is over, one way or the other."""
        self._show(state=state, reason=reason, remaining_pages=0)
        log_end(self.progress, self.progress.downtime, "to")

    def _downtime(self, resume_s: float) -> DowntimeReport | None:
        if self._suspended_s is None:
            return None
        still_s = time.monotonic() - self._suspended_s
        after_s = max(0.0, still_s - (self._last_round_s or 0.0))
        resume_s = min(resume_s, after_s)  # a peer's word, and no more than there was
        # What is neither the last iteration nor the unpausing over there: vcpus, device model,
        # hand-over.
        return DowntimeReport(
            suspend_s=self._suspend_took_s,
            last_iteration_s=self._last_round_s,
            vcpu_state_s=after_s - resume_s,
            resume_s=resume_s,
        )

    def _show(self, **changes: Any) -> None:
        elapsed_s = time.monotonic() - self._begun_s
        self.progress = replace(self.progress, elapsed_s=elapsed_s, **changes)


def total_pages(memory_mib: int) -> int:
    """Return the pages that a guest of that memory has."""
    return memory_mib * (1 << 20) // PAGE_SIZE
