"""The pre-copy decision, by table, and the loop over a source that dirties by script."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from xendpy.guest.domain import DomainConfig
from xendpy.guest.pages import DirtyBitmap, PageBatch, Pfns
from xendpy.migration.precopy import (
    FIXED_DOWNTIME_S,
    Decision,
    OnNoConvergence,
    PrecopyCancelled,
    PrecopyLimits,
    PrecopyStats,
    Suspended,
    decide,
    precopy,
)
from xendpy.migration.progress import Round
from xendpy.migration.send import Pacer
from xendpy.stream.records import Pages, Record

LIMITS = PrecopyLimits(max_downtime_s=0.3, max_iterations=29, max_factor=3)


def stats(**values: float) -> PrecopyStats:
    base = {
        "iteration": 0,
        "total_written": 1000,
        "dirty_count": 100_000,
        "nr_pages": 100_000,
        "pages_per_s": 100_000.0,
        "elapsed_s": 1.0,
    }
    return PrecopyStats(**(base | values))  # type: ignore[arg-type]


GO_ON, STOP = Decision.CONTINUE_PRECOPY, Decision.STOP_AND_COPY
CANCEL = PrecopyLimits(on_no_convergence=OnNoConvergence.CANCEL)
TABLE = [
    ("more to do", stats(), LIMITS, GO_ON, False),
    ("fits the downtime", stats(dirty_count=20_000), LIMITS, STOP, True),
    ("just too much", stats(dirty_count=30_000), LIMITS, GO_ON, False),
    ("fewer than 50", stats(dirty_count=49, pages_per_s=1), LIMITS, STOP, True),
    ("50 on a dead link", stats(dirty_count=50, pages_per_s=0), LIMITS, GO_ON, False),
    ("29 iterations", stats(iteration=28), LIMITS, STOP, False),
    ("28 iterations", stats(iteration=27), LIMITS, GO_ON, False),
    ("factor 3", stats(total_written=300_001), LIMITS, STOP, False),
    ("factor 3 exactly", stats(total_written=300_000), LIMITS, GO_ON, False),
    ("cancel instead", stats(iteration=28), CANCEL, Decision.ABORT, False),
    ("timeout", stats(elapsed_s=9.0), PrecopyLimits(timeout_s=9), STOP, False),
    ("in time", stats(elapsed_s=8.9), PrecopyLimits(timeout_s=9), GO_ON, False),
]


@pytest.mark.parametrize(
    ("stand", "limits", "decision", "converged"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_decide(
    stand: PrecopyStats, limits: PrecopyLimits, decision: Decision, converged: bool
) -> None:
    verdict = decide(stand, limits)
    assert (verdict.decision, verdict.converged) == (decision, converged)


def test_expected_downtime_counts_the_fixed_part() -> None:
    assert stats(dirty_count=10_000).expected_downtime_s == pytest.approx(0.1 + FIXED_DOWNTIME_S)


class ScriptedSource:
    """A source of `nr_pages` pages that dirties `script[n]` pages during iteration n."""

    live = True
    config: DomainConfig

    def __init__(self, nr_pages: int, script: list[int]) -> None:
        self.nr_pages = nr_pages
        self.script = script
        self.log: list[str] = []
        self.asked = 0

    def opening(self) -> Iterator[Record]:
        return iter(())

    closing = opening

    def present(self) -> DirtyBitmap:
        return DirtyBitmap.of(self.nr_pages, np.arange(self.nr_pages, dtype=np.uint64))

    def track_dirty(self) -> None:
        self.log.append("track")

    def take_dirty(self) -> DirtyBitmap:
        count = self.script[self.asked] if self.asked < len(self.script) else 0
        self.asked += 1
        self.log.append(f"take {count}")
        return DirtyBitmap.of(self.nr_pages, np.arange(count, dtype=np.uint64))

    def read(self, pfns: Pfns) -> Pages:
        self.log.append(f"read {len(pfns)}")
        return Pages(PageBatch(pfns, np.zeros(len(pfns), np.uint8)), ())

    def suspend(self) -> None:
        self.log.append("suspend")

    def relinquish(self) -> None: ...

    def resume(self) -> None: ...

    def hold(self, reason: str) -> None: ...

    def cancel(self) -> None: ...


class Clock:
    """Advances by a fixed step at every look."""

    def __init__(self, step_s: float) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def test_live_copies_everything_then_what_was_written_then_the_rest_suspended() -> None:
    source = ScriptedSource(2048, [1000, 10, 3])
    items = list(precopy(source, lambda: LIMITS, Clock(10.0), live=True))
    assert source.log == [
        "track", "read 1024", "read 1024", "take 1000", "read 1000", "take 10",
        "suspend", "take 3", "read 10",
    ]  # fmt: skip
    iterations = [item for item in items if isinstance(item, Round)]
    assert [(item.index, item.sent_pages, item.last) for item in iterations] == [
        (0, 2048, False),
        (1, 1000, False),
        (2, 10, True),
    ]
    assert [type(item) for item in items].index(Suspended) == len(items) - 3


def test_what_is_written_between_decision_and_suspend_is_sent() -> None:
    source = ScriptedSource(64, [0, 40])
    list(precopy(source, lambda: LIMITS, Clock(0.1), live=True))
    assert source.log[-3:] == ["suspend", "take 40", "read 40"]


def test_offline_suspends_first_and_sends_once() -> None:
    source = ScriptedSource(1500, [])
    items = list(precopy(source, lambda: LIMITS, Clock(0.1), live=False))
    assert source.log == ["suspend", "read 1024", "read 476"]
    assert isinstance(items[0], Suspended)


def test_a_guest_that_never_converges_is_stopped_after_the_last_iteration() -> None:
    limits = PrecopyLimits(max_iterations=4, max_factor=100)
    source = ScriptedSource(1024, [900] * 10)
    items = list(precopy(source, lambda: limits, Clock(10.0), live=True))
    suspended = next(item for item in items if isinstance(item, Suspended))
    assert not suspended.verdict.converged
    assert "4 iterations" in suspended.verdict.reason
    assert source.log.count("read 900") == 4


def test_a_guest_that_never_converges_is_left_running_when_the_plan_says_cancel() -> None:
    limits = PrecopyLimits(max_iterations=2, on_no_convergence=OnNoConvergence.CANCEL)
    source = ScriptedSource(1024, [900] * 10)
    with pytest.raises(PrecopyCancelled, match="2 iterations"):
        list(precopy(source, lambda: limits, Clock(10.0), live=True))
    assert "suspend" not in source.log


def test_a_downtime_that_is_allowed_meanwhile_ends_the_iterations() -> None:
    source = ScriptedSource(1024, [900] * 10)

    def limits() -> PrecopyLimits:
        return PrecopyLimits(max_downtime_s=0.3 if source.asked < 3 else 3600.0)

    items = list(precopy(source, limits, Clock(10.0), live=True))
    suspended = next(item for item in items if isinstance(item, Suspended))
    assert suspended.verdict.converged
    assert source.log.index("suspend") == source.log.index("take 900") + 5  # after the third


def test_a_rate_that_changes_meanwhile_holds_from_the_next_write_on() -> None:
    rates = iter((1000, 1000, 0, 4000))
    now_s, waits = 0.0, list[float]()

    def wait(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        waits.append(seconds)

    pacer = Pacer(lambda: next(rates), wait, lambda: now_s)
    for _ in range(4):
        pacer.spend(2000)
    assert waits == [2.0, 2.0, 0.5]
