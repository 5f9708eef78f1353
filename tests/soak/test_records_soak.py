"""Every fault at every border of old senders' streams; SOAK_SECONDS=N ends it earlier."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.soak import records
from tests.soak.test_handover_soak import SECONDS


@pytest.mark.slow
@pytest.mark.timeout(0)
async def test_no_fault_at_a_record_s_border_loses_or_doubles_a_guest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began_s = time.monotonic()
    for stream in [*records.made(), *records.real()]:
        became: Counter[str] = Counter()
        async with records.hasty(tmp_path / stream.name) as host:
            for number, fault in enumerate(records.faults(stream), 1):
                if time.monotonic() - began_s > SECONDS:
                    break
                became[await records.hurt(host, stream, fault, number)] += 1
        with capsys.disabled():
            seconds = time.monotonic() - began_s
            print(f"{stream.name}: {became.total()} faults, {dict(became)}, after {seconds:.0f} s")
        assert became
