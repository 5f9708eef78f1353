"""What can go wrong, on real Xen: the guest goes on, nothing is left, the message helps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.lab import failures, refusals, running
from tests.lab.oldwire import count, counts
from tests.lab.session import Host, Session, check
from tests.lab.wanderer import GUEST, present, settled, tidy, where

PORT = 9002


@dataclass(frozen=True)
class Phase:
    """Where a connection is cut: so many units, or a share of the bytes, of one direction."""

    name: str
    direction: str
    back: int = 0  # units before the last of a whole migration
    share: float = 0.0


PHASES = (
    Phase("in the pages", "up", share=0.5),
    Phase("before the target has said received", "up", back=2),
    Phase("when the target has said received", "down", back=1),
    Phase("when the source has let go", "up", back=0),
    Phase("before the target's last word", "down", back=0),
)


def walk(session: Session) -> None:
    """Break one thing after the other; a failure does not keep the others from being tried."""
    if session.group(_begin):
        cuts = ((f"connection cut {phase.name}", _cutting(phase)) for phase in PHASES)
        session.each((*cuts, *failures.STEPS, *refusals.STEPS), tidy)


def _begin(session: Session) -> None:
    with session.step("a guest for the faults"):
        present(session)


def _measure(session: Session) -> None:
    """Move the guest once, and count what passes between the hosts."""
    source, target = where(session)
    with cutter(source, target) as ended:
        source.run(f"xm migrate -p {PORT} {GUEST} 127.0.0.1", timeout_s=1800)
        counts(target, GUEST)
        told = ended()
    session.units, session.sizes = told["units"], told["bytes"]
    print(f"  a whole migration: {session.units} lines and frames, {session.sizes} bytes")


@contextmanager
def cutter(
    source: Host, target: Host, fault: str = ""
) -> Iterator[Callable[[], dict[str, dict[str, int]]]]:
    """Run tests.lab.cutter on the source; the yielded call ends it and returns what it says."""
    words = f"cutter {PORT} {target.name} {fault}".rstrip()
    with running.listening(source, words, PORT) as ended:
        yield lambda: dict(json.loads(ended().splitlines()[-1]))


def _cutting(phase: Phase) -> Callable[[Session], None]:
    def work(session: Session) -> None:
        if not session.units:
            _measure(session)
        source, target = where(session)
        before = count(source, GUEST)
        if phase.share:
            fault = f"{phase.direction} offset {int(session.sizes['up'] * phase.share)}"
        else:
            fault = f"{phase.direction} unit {session.units[phase.direction] - phase.back}"
        with cutter(source, target, fault) as ended:
            source.run(f"xm migrate -p {PORT} {GUEST} 127.0.0.1", status=None, timeout_s=1800)
            check(ended()["cut"], "nothing was cut")
        settled(session, before)

    return work
