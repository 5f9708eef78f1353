"""Power cuts behind every durable operation of a hand-over; SOAK_SECONDS=N ends it earlier."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.soak import power
from tests.soak.test_handover_soak import SECONDS


@pytest.mark.slow
@pytest.mark.timeout(0)
async def test_no_power_cut_loses_or_doubles_a_guest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tape = await power.rehearse(tmp_path / "tape")
    cuts = power.all_cuts(tape)
    owners: Counter[str] = Counter()
    began_s = time.monotonic()
    for number, cut in enumerate(cuts, 1):
        if time.monotonic() - began_s > SECONDS:
            break
        owner = await power.run(tape, cut, tmp_path / f"cut{number}")
        owners[owner] += 1
        with capsys.disabled():
            print(f"{number}/{len(cuts)} {cut}: {owner}", flush=True)
    with capsys.disabled():
        seconds = time.monotonic() - began_s
        print(
            f"{owners.total()} power cuts in {seconds:.0f} s: {owners['b']} guests moved,"
            f" {owners['a']} stayed; none lost, none doubled"
        )
    assert owners["a"]
