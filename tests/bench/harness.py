"""Pairs of measurements, interleaved, and the table they make.

A row compares two ways to do the same work, in the same run. Each pair measures both, the one
that goes first in turn, so that they meet the same weather; the ratio is taken within a pair. Rows
with the same peer can share its runs. A row is `below` if the better quarter of its pairs does not
reach the bar: a busy machine alone does not do that.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PAIRS = 7
MIB = 1 << 20

Measure = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a row's ratio must reach: at least, or at most where `at_most`; None = no claim."""

    value: float | None = None
    at_most: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return f"{'<=' if self.at_most else '>='} {self.value:g}"

    def met(self, ratios: Sequence[float]) -> bool:
        """Say whether the better quarter of the pairs reaches the bar."""
        if self.value is None or not ratios:
            return True
        low, _, high = quartiles(ratios)
        return low <= self.value if self.at_most else high >= self.value


def at_least(value: float) -> Bar:
    return Bar(value=value)


def at_most(value: float) -> Bar:
    return Bar(value=value, at_most=True)


NO_BAR = Bar()


@dataclass(slots=True, kw_only=True)
class Row:
    """One line of the table. `ours` and `theirs` are in `unit`; `skipped` says why there is none.

    With a `>=` bar the ratio is one of speeds, theirs / ours in time; with `<=` it is ours by
    theirs.
    """

    work: str
    against: str
    bar: Bar
    unit: str = "s"
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    skipped: str = ""
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.ours, self.theirs, strict=True)
        return [a / b if self.bar.at_most else b / a for a, b in pairs]

    @property
    def below(self) -> bool:
        return not self.bar.met(self.ratios)

    def to_json(self) -> dict[str, Any]:
        ratio = quartiles(self.ratios) if self.ours else None
        return {**asdict(self), "bar": str(self.bar), "ratio": ratio, "below": self.below}

    def line(self) -> str:
        """Return the row as the table shows it."""
        if self.skipped:
            return f"{self.work:<44} skipped: {self.skipped}"
        low, middle, high = quartiles(self.ratios)
        mark = "below" if self.below else ""
        return (
            f"{self.work:<44} {self._three(self.ours)} {self._three(self.theirs)}"
            f" {low:6.2f} {middle:6.2f} {high:6.2f}  {self.bar!s:>8} {mark:<6}{self.note}"
        ).rstrip()

    def _three(self, values: Sequence[float]) -> str:
        digits = 3 if max(values) < 100 else 1
        three = (min(values), statistics.median(values), max(values))
        return " ".join(f"{value:8.{digits}f}" for value in three) + f" {self.unit:<3}"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


@dataclass(slots=True)
class Bench:
    """One run: how large, how often, where, and what came of it."""

    directory: Path  # on disk
    memory_directory: Path  # on tmpfs
    scale: float = 1.0
    pairs: int = PAIRS
    only: str = ""
    rows: list[Row] = field(default_factory=list)

    def mib(self, wanted: int) -> int:
        """Return the size of a guest of `wanted` MiB in this run: whole batches."""
        return max(16, int(wanted * self.scale) // 4 * 4)

    def wants(self, work: str) -> bool:
        """Say whether a row was asked for."""
        return self.only in work

    def compare(
        self,
        work: str,
        against: str,
        bar: Bar,
        ours: Measure,
        theirs: Measure,
        *,
        unit: str = "s",
        note: str = "",
        pairs: int | None = None,
    ) -> None:
        """Measure both, in turn, after a round that does not count."""
        row = Row(work=work, against=against, bar=bar, unit=unit, note=note)
        self.compare_all([(row, ours)], theirs, pairs=pairs)

    def compare_all(
        self,
        rows: Sequence[tuple[Row, Measure]],
        theirs: Measure,
        *,
        pairs: int | None = None,
    ) -> None:
        """Measure rows that have one peer, which then runs once a round for all of them.

        The first round does not count; in each, another one begins, and every second one goes
        the other way round.
        """
        wanted = [(row, ours) for row, ours in rows if self.wants(row.work)]
        if not wanted:
            return
        measures = [*(ours for _, ours in wanted), theirs]
        for measure in measures:
            measure()
        for number in range(pairs or self.pairs):
            seconds = [0.0] * len(measures)
            order = [(number + step) % len(measures) for step in range(len(measures))]
            # Who follows whom matters as well: one leaves the memory that the next one takes.
            for which in reversed(order) if number % 2 and len(order) > 2 else order:
                seconds[which] = measures[which]()
            for (row, _), mine in zip(wanted, seconds[:-1], strict=True):
                row.ours.append(mine)
                row.theirs.append(seconds[-1])
        for row, _ in wanted:
            self.add(row)

    def skip(self, work: str, against: str, bar: Bar, reason: str) -> None:
        """Enter a row that cannot be measured here."""
        if self.wants(work):
            self.add(Row(work=work, against=against, bar=bar, skipped=reason))

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(row.line(), flush=True)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def heading() -> str:
    """Return what the figures were measured on, and the table's head."""
    names = ["numpy", "uvloop", "cryptography", "xxhash", "zstandard"]
    return (
        f"{processor()}, {os.cpu_count()} cpus, {memory_gib():.0f} GiB, Linux"
        f" {platform.release()}, load {os.getloadavg()[0]:.1f}\n"
        f"Python {platform.python_version()}; "
        + ", ".join(f"{name} {version}" for name in names if (version := version_of(name)))
        + "\n\n"
        + f"{'':<44} {'xendpy: min, median, max':<30} {'against: min, median, max':<30}"
        + f" {'ratio: quartiles':>20}  {'bar':>8}"
    )


def machine() -> dict[str, Any]:
    """Return the same for the JSON."""
    names = ["numpy", "uvloop", "cryptography", "xxhash", "zstandard"]
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory_gib(), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in names},
    }


def write_json(file: Path, bench: Bench) -> None:
    rows = [row.to_json() for row in bench.rows]
    file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def version_of(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()


def memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)


def available_mib() -> int:
    """Return how much memory can be used without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no MemAvailable in /proc/meminfo")


def python(*argv: str) -> list[str]:
    return [sys.executable, *argv]
