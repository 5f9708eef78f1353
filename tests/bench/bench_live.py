"""Measure live migration between two daemons on this machine: total, downtime, bytes per RAM.

    python -m tests.bench.bench_live [--runs 5] [--memory 256 1024] [--rates 0 50 200 800]

A test guest of each size dirties its memory at each rate, over half of it, and is sent there and
back in turn. Idle guests must be stopped for at most 5 % of the total, those that converged for
at most the allowed downtime and a tenth.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers.hosts import Host, pair

ALLOWED_S = 0.3  # the default of --max-downtime
IDLE_SHARE = 0.05
PARTS = ("suspend_s", "last_iteration_s", "vcpu_state_s", "resume_s")


@dataclass(frozen=True)
class Run:
    """One migration; seconds, and bytes sent by bytes of memory."""

    total_s: float
    downtime_s: float
    ratio: float
    iterations: int
    converged: bool
    parts: tuple[float, ...]

    @classmethod
    def of(cls, told: dict[str, Any]) -> Run:
        downtime = told["downtime"]
        return cls(
            total_s=told["elapsed"],
            downtime_s=downtime["total_s"],
            ratio=int(told["bytes"]) / (int(told["total_pages"]) * told["page_size"]),
            iterations=len(told["rounds"]),
            converged=bool(told["converged"]),
            parts=tuple(float(downtime[part] or 0.0) for part in PARTS),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a downtime is longer than it may be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="+", default=[256, 1024], metavar="MiB")
    parser.add_argument("--rates", type=int, nargs="+", default=[0, 50, 200, 800], metavar="MB/s")
    options = parser.parse_args(argv)
    print(
        f"live migration over loopback, {options.runs} runs each, {os.cpu_count()} cpus,"
        f" Python {platform.python_version()}, allowed downtime {ALLOWED_S * 1000:.0f} ms;"
        " min / median / max"
    )
    late = []
    with tempfile.TemporaryDirectory(prefix="xendpy-bench-") as directory:
        for memory in options.memory:
            for rate in options.rates:
                place = Path(directory) / f"{memory}-{rate}"
                runs = measure(place, memory=memory, rate=rate, count=options.runs)
                print_runs(memory, rate, runs)
                late += [f"{memory} MiB at {rate} MB/s: {text}" for text in too_long(rate, runs)]
    for text in late:
        print(f"too long: {text}")
    return 1 if late else 0


def measure(directory: Path, *, memory: int, rate: int, count: int) -> list[Run]:
    """Send one guest back and forth `count` times."""
    runs = []
    extra = (
        f"tick=0.2 dirty={rate}MB/s wss={memory // 2}MB fill=random"
        if rate
        else "tick=0.2 fill=random"
    )
    with pair(directory, more="(loglevel INFO)\n") as (source, target):
        source.create(memory=memory, extra=extra)
        for _ in range(count):
            runs.append(move(source, target))
            source, target = target, source
    return runs


def move(source: Host, target: Host) -> Run:
    source.xm("migrate", "--live", "testvm1", target.name)
    return Run.of(source.last())


def print_runs(memory: int, rate: int, runs: list[Run]) -> None:
    """Print one block of figures."""
    converged = sum(run.converged for run in runs)
    print(f"\n{memory} MiB, {rate} MB/s: {converged} of {len(runs)} converged")
    print(f"  total     {spread([run.total_s for run in runs], 's', 2)}")
    print(f"  downtime  {spread([run.downtime_s * 1000 for run in runs], 'ms', 0)}")
    parts = [statistics.median(run.parts[index] for run in runs) * 1000 for index in range(4)]
    named = zip(("suspend", "last iteration", "state", "resume"), parts, strict=True)
    print(f"    of it   {', '.join(f'{name} {ms:.1f}' for name, ms in named)} ms (medians)")
    share = statistics.median(run.downtime_s / run.total_s for run in runs)
    print(f"    share   {share:.1%} of the total (median)")
    print(f"  bytes/RAM {spread([run.ratio for run in runs], '', 2)}")
    print(f"  rounds    {spread([float(run.iterations) for run in runs], '', 0)}", flush=True)


def spread(values: list[float], unit: str, digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:.{digits}f} / {middle:.{digits}f} / {high:.{digits}f} {unit}".rstrip()


def too_long(rate: int, runs: list[Run]) -> list[str]:
    """Return a sentence for each downtime that is longer than it may be."""
    found = []
    for run in runs:
        if run.converged and run.downtime_s > ALLOWED_S * 1.1:
            found.append(f"{run.downtime_s * 1000:.0f} ms, {ALLOWED_S * 1100:.0f} ms are allowed")
        elif not rate and run.downtime_s > run.total_s * IDLE_SHARE:
            share = run.downtime_s / run.total_s
            found.append(f"idle, {share:.1%} of the total, {IDLE_SHARE:.0%} are allowed")
    return found


if __name__ == "__main__":
    sys.exit(main())
