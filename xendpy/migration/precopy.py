"""When to stop copying a running guest, and the loop that asks.

The algorithm is Xen's (xc_domain_save.c of 3.1-4.5, xg_sr_save.c since 4.6, and Clark et al.,
NSDI 2005): copy everything, then what was written meanwhile, and so on, until what is left is
little enough to be copied while the guest stands still. Xen counts pages; here "little enough"
is time: what the link, at the rate it has just shown, carries within the allowed downtime.

No clock and no socket here: the caller hands in the time and consumes the pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from xendpy.guest.pages import MAX_BATCH, DirtyBitmap
from xendpy.hypervisor.base import PageSource
from xendpy.migration.progress import Round
from xendpy.stream.records import Pages

DEFAULT_MAX_ITERATIONS = 29  # xc_domain_save.c DEF_MAX_ITERS
DEFAULT_MAX_FACTOR = 3  # xc_domain_save.c DEF_MAX_FACTOR: times the guest's own size
CONVERGED_PAGES = 50  # xc_domain_save.c: fewer than this is as good as nothing
# What suspend, vcpu state, four steps in the journals and resuming cost besides the pages: 70 to
# 110 ms between two daemons on one host with a disk that takes 10 ms to sync, 4 to 12 on one that
# takes none (tests/bench/bench_live.py); taken off the allowed downtime beforehand.
FIXED_DOWNTIME_S = 0.08


class Decision(Enum):
    """What to do after an iteration. Xen's names (xenguest.h)."""

    CONTINUE_PRECOPY = "continue"
    STOP_AND_COPY = "stop"
    ABORT = "abort"


class OnNoConvergence(StrEnum):
    """What a guest that dirties faster than the link carries gets."""

    PAUSE = "pause"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecopyLimits:
    """How long pre-copy may go on; `timeout_s` 0 = for as long as it takes."""

    max_iterations: int = DEFAULT_MAX_ITERATIONS
    max_factor: float = DEFAULT_MAX_FACTOR
    max_downtime_s: float = 0.3
    timeout_s: float = 0.0
    on_no_convergence: OnNoConvergence = OnNoConvergence.PAUSE


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecopyStats:
    """Where pre-copy stands after an iteration; pages, and seconds since it began."""

    iteration: int
    total_written: int
    dirty_count: int
    nr_pages: int
    pages_per_s: float
    elapsed_s: float

    @property
    def expected_downtime_s(self) -> float:
        """How long the guest would stand still if it were stopped now."""
        if self.pages_per_s <= 0:
            return float("inf") if self.dirty_count else FIXED_DOWNTIME_S
        return self.dirty_count / self.pages_per_s + FIXED_DOWNTIME_S


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, and whether the guest had converged when it was taken."""

    decision: Decision
    converged: bool
    reason: str


def decide(stats: PrecopyStats, limits: PrecopyLimits) -> Verdict:
    """Return what to do after an iteration."""
    if stats.dirty_count < CONVERGED_PAGES:
        return Verdict(Decision.STOP_AND_COPY, True, f"{stats.dirty_count} pages are left")
    if stats.expected_downtime_s <= limits.max_downtime_s:
        expected_ms = stats.expected_downtime_s * 1000
        return Verdict(Decision.STOP_AND_COPY, True, f"{expected_ms:.0f} ms of pages are left")
    reason = _gave_up(stats, limits)
    if reason is None:
        return Verdict(Decision.CONTINUE_PRECOPY, False, "")
    if limits.on_no_convergence is OnNoConvergence.CANCEL:
        return Verdict(Decision.ABORT, False, reason)
    return Verdict(Decision.STOP_AND_COPY, False, reason)


def _gave_up(stats: PrecopyStats, limits: PrecopyLimits) -> str | None:
    if stats.iteration + 1 >= limits.max_iterations:
        return f"no convergence after {stats.iteration + 1} iterations"
    if stats.total_written > stats.nr_pages * limits.max_factor:
        return f"no convergence after sending {limits.max_factor:g} times the guest's memory"
    if limits.timeout_s and stats.elapsed_s >= limits.timeout_s:
        return f"no convergence within {limits.timeout_s:g} s"
    return None


@dataclass(frozen=True, slots=True)
class Suspended:
    """News from the loop: the guest stands still from `at_s` (the caller's clock) on.

    Stopping it took the `took_s` seconds before.
    """

    at_s: float
    verdict: Verdict
    took_s: float = 0.0


class PrecopyCancelled(Exception):
    """The guest did not converge and the plan says cancel; `reason` says how."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def precopy(
    source: PageSource,
    limits: Callable[[], PrecopyLimits],
    clock: Callable[[], float],
    *,
    live: bool,
    hurried: Callable[[], bool] = lambda: False,
) -> Iterator[Pages | Round | Suspended]:
    """Yield the guest's pages, iteration by iteration, and what happened between them.

    A `Pages` must be consumed before the next item is asked for: its views die then. After the
    last item the guest stands still and `source.closing()` may be sent. `limits` and `hurried` are
    asked after each iteration: somebody may have changed them, or want it over with, whatever is
    left. Offline (`live` false, or a guest at rest): the guest is suspended first and everything
    is sent once.

    Raises:
        PrecopyCancelled: the guest did not converge and the plan says cancel; it still runs.
    """
    started_s = clock()
    if not live:
        yield _suspend(source, Verdict(Decision.STOP_AND_COPY, True, "offline"), clock)
        yield from _iterate(source, source.present(), 0, clock, last=True)
        return
    source.track_dirty()
    dirty = source.present()
    stats = PrecopyStats(
        iteration=-1,
        total_written=0,
        dirty_count=dirty.count,
        nr_pages=max(1, dirty.count),
        pages_per_s=0.0,
        elapsed_s=0.0,
    )
    while True:
        sent, began_s = dirty.count, clock()
        yield from _send(source, dirty)
        dirty = source.take_dirty()
        took_s = max(clock() - began_s, 1e-6)
        stats = replace(
            stats,
            iteration=stats.iteration + 1,
            total_written=stats.total_written + sent,
            dirty_count=dirty.count,
            pages_per_s=sent / took_s,
            elapsed_s=clock() - started_s,
        )
        yield Round(
            index=stats.iteration,
            sent_pages=sent,
            dirtied_pages=dirty.count,
            seconds=took_s,
            last=False,
        )
        verdict = decide(stats, limits())
        if verdict.decision is Decision.CONTINUE_PRECOPY and hurried():
            verdict = Verdict(Decision.STOP_AND_COPY, False, "told to finish")
        if verdict.decision is Decision.ABORT:
            raise PrecopyCancelled(verdict.reason)
        if verdict.decision is Decision.STOP_AND_COPY:
            break
    yield _suspend(source, verdict, clock)
    dirty.merge(source.take_dirty())
    yield from _iterate(source, dirty, stats.iteration + 1, clock, last=True)


def _suspend(source: PageSource, verdict: Verdict, clock: Callable[[], float]) -> Suspended:
    began_s = clock()
    source.suspend()
    now_s = clock()
    return Suspended(now_s, verdict, took_s=now_s - began_s)


def _iterate(
    source: PageSource, dirty: DirtyBitmap, index: int, clock: Callable[[], float], *, last: bool
) -> Iterator[Pages | Round]:
    began_s = clock()
    yield from _send(source, dirty)
    yield Round(
        index=index,
        sent_pages=dirty.count,
        dirtied_pages=0,
        seconds=max(clock() - began_s, 1e-6),
        last=last,
    )


def _send(source: PageSource, dirty: DirtyBitmap) -> Iterator[Pages]:
    for pfns in dirty.batches(MAX_BATCH):
        yield source.read(pfns)
