"""The ways in which a hand-over between two xendpy hosts can be broken, and one run of each."""

from __future__ import annotations

import http.client
import random
import xmlrpc.client
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from tests.peers.proxy import CUT, DOWN, HALF_CLOSE, KINDS, STALL, UP, Fault
from tests.soak.pair import Host, Pair, until

SOURCE, TARGET = "source", "target"
REHEARSALS = 5
FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One broken hand-over: `moment` of `victim` kills it, `both` the other with it."""

    fault: Fault | None = None
    victim: str = ""
    moment: str = ""
    both: bool = False
    live: bool = True

    @property
    def id(self) -> str:
        if self.fault is not None:
            place = self.fault.unit if self.fault.offset < 0 else f"byte{self.fault.offset}"
            return f"{self.fault.kind}-{self.fault.direction}-{place}"
        return f"{self.victim}-{self.moment.replace(':', '-')}{'-both' if self.both else ''}"


@dataclass(frozen=True, slots=True)
class Course:
    """What an unbroken hand-over passes."""

    moments: dict[str, list[str]]
    units: dict[str, int]
    bytes: dict[str, int]


def rehearse(pair: Pair) -> Course:
    """Move the guest without a fault, and return what there is to break.

    A machine that stands still for longer than the hosts' timeouts breaks one by itself.
    """
    for _ in range(REHEARSALS):
        source, target = pair.ends()
        course = _rehearse(pair, source, target)
        if pair.ends() == (target, source):
            return course
    raise AssertionError(f"it did not move:\n{pair.report()}")


def _rehearse(pair: Pair, source: Host, target: Host) -> Course:
    for host in (source, target):
        host.disarm()
    target.proxy.arm(None)
    ticks = pair.ticks(source)
    _migrate(pair, live=True)
    until(pair.settled, "an unbroken migration")
    pair.examine(ticks)
    moments = {SOURCE: source.moments(), TARGET: target.moments()}
    return Course(moments, dict(target.proxy.units), dict(target.proxy.bytes))


def all_cases(course: Course, *, offsets: int, seed: int = 1) -> list[Case]:
    """Return every case of an unbroken course, and `offsets` random ones for each kind."""
    return [*journal_cases(course), *boundary_cases(course), *durable_cases(course),
            *disk_cases(course), *offset_cases(course, offsets, random.Random(seed))]  # fmt: skip


def journal_cases(course: Course) -> Iterator[Case]:
    """Yield a death at every journal step and frame: of one host, and of both."""
    for victim, moments in course.moments.items():
        for moment in dict.fromkeys(moments):
            if not moment.startswith("durable:"):
                for both in (False, True):
                    yield Case(victim=victim, moment=moment, both=both)


def durable_cases(course: Course) -> Iterator[Case]:
    """Yield a death at every durable operation of one host."""
    for victim, moments in course.moments.items():
        for moment in dict.fromkeys(moments):
            if moment.startswith("durable:"):
                yield Case(victim=victim, moment=moment)


def disk_cases(course: Course) -> Iterator[Case]:
    """Yield a disk that fails once, or is full from there on, at every durable operation."""
    for case in durable_cases(course):
        operation, when = case.moment.rsplit(":", 1)
        for how in ("error", FULL) if when == "before" else ():
            yield Case(victim=case.victim, moment=f"{operation}:{how}")


def boundary_cases(course: Course) -> Iterator[Case]:
    """Yield each fault of the connection at the end of every line and frame."""
    for direction, units in course.units.items():
        for unit in range(1, units + 1):
            for kind in KINDS:
                yield Case(fault=Fault(kind, direction, unit=unit), live=unit % 2 == 0)


def offset_cases(course: Course, count: int, chance: random.Random) -> Iterator[Case]:
    """Yield each fault of the connection at `count` random places."""
    for direction in (UP, DOWN):
        for _ in range(count):
            for kind in KINDS:
                offset = chance.randint(1, max(1, course.bytes[direction]))
                yield Case(fault=Fault(kind, direction, offset=offset))


def sample(course: Course) -> list[Case]:
    """Return some cases that touch every step of the hand-over once, in seconds."""
    steps = [case for case in journal_cases(course) if case.moment.startswith("journal:")]
    after = [case for case in steps if case.moment.endswith(":after") and not case.both]
    last = [Fault(kind, DOWN, unit=course.units[DOWN] - back) for kind in KINDS for back in (0, 1)]
    early = [Fault(CUT, UP, unit=unit) for unit in (1, 3, course.units[UP] - 2)]
    # The source is told at once, and redials before the target has begun.
    hasty = [Fault(HALF_CLOSE, DOWN, unit=2), Fault(STALL, UP, unit=4)]
    return [*after, *(Case(fault=fault) for fault in [*last, *early, *hasty])]


@dataclass(frozen=True, slots=True)
class Result:
    """Where the guest is in the end, and whether the moment to break the hand-over came."""

    guest: str = ""  # moved or stayed
    broken: bool = True
    fault: str = ""

    def __str__(self) -> str:
        return f"{self.guest or 'FAULT'}{'' if self.broken else ', unbroken'}"


def run_to_result(pair: Pair, case: Case) -> Result:
    """Do as `run`, and return what is wrong in the end, whatever it is, instead of raising it."""
    try:
        return run(pair, case)
    except Exception as error:
        return Result(fault=f"{case.id}: {error}")


def run(pair: Pair, case: Case) -> Result:
    """Break one hand-over, heal, and return where the guest is.

    Raises:
        AssertionError: it is lost, doubled, damaged, or nobody owns it in the end.
    """
    source, target = pair.ends()
    for host in (source, target):
        host.disarm()
    ticks = pair.ticks(source)
    target.proxy.arm(case.fault)
    victim, other = (source, target) if case.victim == SOURCE else (target, source)
    if case.moment:
        victim.arm(case.moment)
    try:
        _migrate(pair, live=case.live)
        if case.moment.endswith(FULL):
            until(pair.quiet, "the migration to end on a full disk")
            victim.disarm()
        if case.both:
            until(lambda: victim.process_ended() or pair.settled(), "the moment to come")
            if victim.process_ended():
                other.kill()
        until(pair.settled, "exactly one owner")
        pair.examine(ticks)
    except (AssertionError, OSError) as error:
        raise AssertionError(f"{case.id}: {error}\n{pair.report()}") from error
    finally:
        broken = not victim.armed() if case.moment else target.proxy.hurt.is_set()
        for host in (source, target):
            host.disarm()
    return Result("moved" if pair.ends()[0] is target else "stayed", broken)


def _migrate(pair: Pair, *, live: bool) -> None:
    """Ask for the migration, and leave it to itself; the source may die over it."""
    source, target = pair.ends()
    request = {"destination": target.name, "live": live}
    # A source that cannot even write down that it begins says so.
    with suppress(OSError, http.client.HTTPException, xmlrpc.client.Fault):
        source.rpc().xendpy.migrate("testvm1", request, {})
