"""Every failure of the disk at every step of an arrival; SOAK_SECONDS=N ends it earlier."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak import disk
from tests.soak.records import Stream
from tests.soak.test_handover_soak import SECONDS


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("made", [disk.live, disk.cold], ids=["live", "cold"])
async def test_no_failure_of_the_disk_loses_or_doubles_a_guest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: Callable[[], Stream]
) -> None:
    stream = made()
    faults = await disk.all_faults(tmp_path / "count", stream)
    became: Counter[str] = Counter()
    began_s = time.monotonic()
    for fault in faults:
        if time.monotonic() - began_s > SECONDS:
            break
        place = tmp_path / "place"
        became[await disk.run(place, stream, fault)] += 1
        shutil.rmtree(place)
    with capsys.disabled():
        seconds = time.monotonic() - began_s
        print(f"{became.total()} of {len(faults)} disk faults in {seconds:.0f} s: {dict(became)}")
    assert became["kept"]
