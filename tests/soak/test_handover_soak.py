"""Every way to break a hand-over between two hosts: nothing is lost, nothing is doubled.

make soak        SOAK_SECONDS=N ends it after so many seconds, SOAK_OFFSETS=N random places
"""

import os

import pytest

from tests.soak import cases
from tests.soak.pair import Pair

SECONDS = float(os.environ.get("SOAK_SECONDS", "3600"))
OFFSETS = int(os.environ.get("SOAK_OFFSETS", "50"))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_no_broken_handover_loses_or_doubles_a_guest(tmp_path, capsys):
    with Pair(tmp_path) as pair:
        every = cases.all_cases(cases.rehearse(pair), offsets=OFFSETS)
        tally = cases.Tally.begin()
        for number, case in enumerate(every, 1):
            if tally.elapsed_s > SECONDS:
                break
            outcome = cases.run(pair, case)
            tally.add(outcome)
            with capsys.disabled():
                print(f"{number}/{len(every)} {case.id}: {outcome}", flush=True)
        with capsys.disabled():
            print(tally)
    assert tally.moved and tally.stayed
