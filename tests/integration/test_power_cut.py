"""Power cuts in the middle of a hand-over: some here, one behind every operation in tests/soak."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import power


@pytest.mark.timeout(600)
async def test_a_power_cut_leaves_one_owner_and_daemons_that_start(tmp_path: Path) -> None:
    tape = await power.rehearse(tmp_path / "tape")
    cuts = power.all_cuts(tape)
    owners = [
        await power.run(tape, cut, tmp_path / f"cut{number}")
        for number, cut in enumerate(power.each(cuts, len(cuts) // 9))
    ]
    assert owners[0] == "a" and owners[-1] == "b"
