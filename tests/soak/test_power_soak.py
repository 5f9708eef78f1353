"""Power cuts behind every durable operation of a hand-over; SOAK_SECONDS=N ends it earlier."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import power
from tests.soak.cases import Tally
from tests.soak.test_handover_soak import SECONDS


@pytest.mark.slow
@pytest.mark.timeout(0)
async def test_no_power_cut_loses_or_doubles_a_guest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tape = await power.rehearse(tmp_path / "tape")
    cuts = power.all_cuts(tape)
    tally = Tally.begin()
    for number, cut in enumerate(cuts, 1):
        if tally.elapsed_s > SECONDS:
            break
        owner = await power.run(tape, cut, tmp_path / f"cut{number}")
        tally.add("moved" if owner == "b" else "stayed")
        with capsys.disabled():
            print(f"{number}/{len(cuts)} {cut}: {owner}", flush=True)
    with capsys.disabled():
        print(tally)
    assert tally.stayed
