"""Every way to break a hand-over between two hosts: nothing is lost, nothing is doubled.

make soak    SOAK_SECONDS=N    no case begins after so many seconds
             SOAK_OFFSETS=N    random places in each direction, for each kind of fault
             SOAK_PAIRS=N      pairs of hosts at a time
             SOAK_STATE=FILE   what was run is kept there; a later run goes on with the rest
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.soak import cases
from tests.soak.cases import Case
from tests.soak.pair import Pair
from tests.soak.tally import Tally

SECONDS = float(os.environ.get("SOAK_SECONDS", "3600"))
OFFSETS = int(os.environ.get("SOAK_OFFSETS", "50"))
PAIRS = int(os.environ.get("SOAK_PAIRS", "2"))
STATE = os.environ.get("SOAK_STATE", "")


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_no_broken_handover_loses_or_doubles_a_guest(tmp_path, capsys):
    tally = Tally.open(Path(STATE) if STATE else tmp_path / "state")
    if tally.course is None:
        with Pair(tmp_path / "rehearsal") as pair:
            tally.begin(cases.rehearse(pair))
    every = cases.all_cases(tally.course, offsets=OFFSETS)
    left = deque(case for case in every if case.id not in tally.outcomes)

    def say(text: str) -> None:
        with capsys.disabled():
            print(text, flush=True)

    with ThreadPoolExecutor(PAIRS) as threads:
        places = [tmp_path / f"pair-{number}" for number in range(PAIRS)]
        list(threads.map(lambda place: work(place, left, tally, say), places))
    say(str(tally))
    assert not tally.faults, "\n\n".join(tally.faults)
    assert {"moved", "stayed"} <= {result.guest for result in tally.outcomes.values()}


def work(place: Path, left: deque[Case], tally: Tally, say: Callable[[str], None]) -> None:
    """Run cases until none is left or the time is over; after a fault with hosts of their own."""
    number = 0
    while left and tally.elapsed_s < SECONDS:
        number += 1
        with Pair(place / str(number)) as pair, suppress(IndexError):
            while tally.elapsed_s < SECONDS:
                case = left.popleft()
                result = cases.run_to_result(pair, case)
                tally.add(case.id, result)
                say(f"{len(tally.outcomes)}, {len(left)} left: {case.id} {result}")
                if result.fault:
                    break
