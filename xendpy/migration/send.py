"""Send a guest: its records, first to last, through an encoder, at the rate that is allowed.

Blocking; runs in a worker thread. Neutral to driver, format and wire: the source yields records,
the encoder turns them into pieces, `write` takes the pieces to the peer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeGuard

from xendpy.errors import MigrationAborted
from xendpy.hypervisor.base import PageSource, RecordSource
from xendpy.migration.observed_rounds import ObservedRounds
from xendpy.migration.precopy import PrecopyLimits, Suspended, precopy
from xendpy.migration.progress import Round
from xendpy.stream.records import (
    EmulatorContext,
    EmulatorXenstore,
    End,
    HvmContext,
    HvmParams,
    OnlineVcpus,
    Pages,
    Record,
    SharedInfo,
    TscInfo,
    VcpuContext,
)

Pieces = Sequence[bytes | memoryview]
# The records with which a toolstack says that there are no more pages.
TAIL = (
    TscInfo, OnlineVcpus, SharedInfo, VcpuContext, HvmParams, HvmContext, EmulatorXenstore,
    EmulatorContext, End,
)  # fmt: skip


class Encoder(Protocol):
    """What turns a record into the bytes of a format; pages stay views."""

    def encode(self, record: Record) -> Iterable[bytes | memoryview]: ...


class Observer(Protocol):
    """Who is told how a send goes; called in the worker thread, must be quick."""

    def sent(self, nr_bytes: int, nr_pages: int) -> None: ...

    def round_done(self, done: Round) -> None: ...

    def suspended(self, news: Suspended) -> None: ...

    def stands_still(self, since_s: float) -> None:
        """A toolstack has suspended its guest, so many seconds ago or longer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationPlan:
    """How a migration is to go; `bandwidth_bytes_per_s` 0 = as fast as it can.

    `compress`: offer it to a peer that can; `streams`: connections to a peer that takes several;
    `lossy`: leave out what a legacy stream cannot carry of the vcpus.
    """

    live: bool
    limits: PrecopyLimits = field(default_factory=PrecopyLimits)
    bandwidth_bytes_per_s: int = 0
    verdict_timeout_s: float = 300.0
    compress: bool = False
    streams: int = 1
    lossy: bool = False


class CancelToken:
    """Somebody's wish to stop, or to go on otherwise, seen by the worker between two writes.

    `seal` ends the time in which a wish counts: from then on the guest is being handed over.
    What is None goes as the plan says.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._sealed = False
        self._wake: Callable[[], None] | None = None
        self.by = ""
        # Somebody wants it over with: after this iteration the guest is stopped.
        self.hurried = False
        self.bandwidth_bytes_per_s: int | None = None
        self.max_downtime_s: float | None = None

    def on_cancel(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from the canceller's thread, so that a blocked write returns."""
        self._wake = wake

    def cancel(self, by: str) -> bool:
        """Ask the worker to stop; return False if it is too late."""
        with self._lock:
            if self._sealed:
                return False
            self.by = by
            self._event.set()
        if self._wake is not None:
            self._wake()
        return True

    def seal(self) -> None:
        """From here on nothing can be cancelled.

        Raises:
            MigrationAborted: it was, before.
        """
        with self._lock:
            self.check()
            self._sealed = True

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raise MigrationAborted if somebody cancelled."""
        if self._event.is_set():
            raise MigrationAborted(self.by)

    def wait(self, seconds: float) -> None:
        """Let `seconds` pass, or less if somebody cancels."""
        self._event.wait(seconds)


class Pacer:
    """Keeps a byte rate: after each write, waits until the rate is met again.

    The allowance that may be saved up is a tenth of a second's worth: short bursts pass, long
    ones do not, whatever the link did before. `bytes_per_s` is asked for each write; 0 = any.
    """

    def __init__(
        self,
        bytes_per_s: Callable[[], int],
        wait: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = bytes_per_s
        self._wait = wait
        self._clock = clock
        self._due_s = clock()

    def spend(self, nr_bytes: int) -> None:
        """Account for `nr_bytes` that were sent, and wait if they came too soon."""
        rate = self._rate()
        if not rate:
            return
        now_s = self._clock()
        self._due_s = max(self._due_s, now_s - 0.1) + nr_bytes / rate
        if self._due_s > now_s:
            self._wait(self._due_s - now_s)


def has_pages(source: PageSource | RecordSource) -> TypeGuard[PageSource]:
    """Say whether the source leaves reading the pages to us."""
    return hasattr(source, "read")


@dataclass(slots=True, kw_only=True)
class Sender:
    """Sends one guest from `source` to `write`; one use."""

    source: PageSource | RecordSource
    encoder: Encoder
    write: Callable[[Pieces], None]
    plan: MigrationPlan
    observer: Observer
    cancel: CancelToken
    clock: Callable[[], float] = time.monotonic
    _tail: list[Pieces] = field(default_factory=list, init=False)

    def send_memory(self) -> None:
        """Send everything up to the last page; then the guest stands still.

        What comes after is encoded as well: whatever cannot be said of the guest is found while
        nobody could build it yet.

        Raises:
            PrecopyCancelled: it does not converge, and the plan says cancel.
            MigrationAborted: somebody cancelled.
            UnsupportedStream: the format has no place for a record.
        """
        pacer = Pacer(self._bandwidth, self.cancel.wait, self.clock)
        if has_pages(self.source):
            self._send_pages(self.source, pacer)
        else:
            self._send_records(self.source, pacer)  # type: ignore[arg-type]  # TypeGuard: one way

    def _send_records(self, source: RecordSource, pacer: Pacer) -> None:
        """Send a toolstack's records up to the last page; keep those that follow."""
        began_s, nr_pages, has_begun, stands = self.clock(), 0, False, False
        rounds = ObservedRounds(self.clock, self.observer.round_done)
        for record in source.records():
            if isinstance(record, TAIL) or (self._tail and not isinstance(record, Pages)):
                if source.live and has_begun and not stands:  # since its last round, like others
                    rounds.end()
                    self.observer.stands_still(0.0)
                    stands = True
                self._tail.append(self._encoded(record))
                continue
            self._send_kept(pacer)  # what looked like the tail was not
            if not isinstance(record, Pages):
                self._send(record, pacer)
                continue
            if not has_begun and not source.live:  # suspended before anything was read
                self.observer.stands_still(self.clock() - began_s)
            has_begun = True
            pfns = record.batch.with_data()  # libxc also lists some with nothing behind them
            if source.live:
                rounds.begin(pfns)
            self._put(self._encoded(record), len(pfns), pacer)
            rounds.sent(len(pfns))
            nr_pages += len(pfns)
        if source.live:
            return
        took_s = max(self.clock() - began_s, 1e-6)
        self.observer.round_done(
            Round(index=0, sent_pages=nr_pages, dirtied_pages=0, seconds=took_s, last=True)
        )

    def _send_pages(self, source: PageSource, pacer: Pacer) -> None:
        for record in source.opening():
            self._send(record, pacer)
        live = self.plan.live and source.live
        for item in precopy(
            source,
            self._limits,
            self.clock,
            live=live,
            hurried=lambda: self.cancel.hurried,
        ):
            self.cancel.check()
            match item:
                case Pages():
                    self._send(item, pacer)
                case Round():
                    self.observer.round_done(item)
                case Suspended():
                    self.observer.suspended(item)
                    if live:
                        # A live guest stands still now: what is left goes at full speed.
                        pacer = self._unpaced()
        self._tail = [self._encoded(record) for record in source.closing()]

    def _bandwidth(self) -> int:
        wished = self.cancel.bandwidth_bytes_per_s
        return self.plan.bandwidth_bytes_per_s if wished is None else wished

    def _limits(self) -> PrecopyLimits:
        wished_s = self.cancel.max_downtime_s
        limits = self.plan.limits
        return limits if wished_s is None else replace(limits, max_downtime_s=wished_s)

    def _unpaced(self) -> Pacer:
        return Pacer(lambda: 0, self.cancel.wait, self.clock)

    def send_tail(self) -> None:
        """Send what comes after memory, up to and including the end of the image."""
        self._send_kept(self._unpaced())

    def _send_kept(self, pacer: Pacer) -> None:
        for pieces in self._tail:
            self._put(pieces, 0, pacer)
        self._tail.clear()

    def _send(self, record: Record, pacer: Pacer) -> None:
        nr_pages = len(record.batch.with_data()) if isinstance(record, Pages) else 0
        self._put(self._encoded(record), nr_pages, pacer)

    def _encoded(self, record: Record) -> Pieces:
        return [piece for piece in self.encoder.encode(record) if len(piece)]

    def _put(self, pieces: Pieces, nr_pages: int, pacer: Pacer) -> None:
        self.cancel.check()
        if not pieces:
            return
        self.write(pieces)
        nr_bytes = sum(len(piece) for piece in pieces)
        self.observer.sent(nr_bytes, nr_pages)
        pacer.spend(nr_bytes)
