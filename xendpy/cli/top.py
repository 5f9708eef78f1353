"""`xm top`: the host and its domains, refreshed; one plain table where there is no terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xendpy.cli.domains import DomainRow, child_value, domain_row, fetch
from xendpy.cli.options import Invocation
from xendpy.cli.terminal import ending_on_interrupt

if TYPE_CHECKING:
    import curses

REFRESH_S = 3.0
HEADER = f"{'NAME':>20}  {'STATE':<6} {'CPU(sec)':>10} {'CPU(%)':>6} {'MEM(M)':>8} {'VCPUS':>5}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The host and its running domains at one moment, `at_s` on the monotonic clock."""

    at_s: float
    host: str
    nr_cpus: int
    total_mib: int
    free_mib: int
    rows: tuple[DomainRow, ...]


def top(xm: Invocation) -> None:
    """Show the table until `q`, or once."""
    if not (sys.stdout.isatty() and sys.stdin.isatty() and os.environ.get("TERM")):
        print("\n".join(lines(sample(xm), None)))
        return
    import curses

    with ending_on_interrupt():
        curses.wrapper(_watch, xm)


def _watch(screen: curses.window, xm: Invocation) -> None:
    import curses

    for wish in (curses.use_default_colors, lambda: curses.curs_set(0)):
        with suppress(curses.error):  # a vt100 has neither colours nor a cursor that hides
            wish()
    screen.timeout(int(REFRESH_S * 1000))
    before: Sample | None = None
    while True:
        now = sample(xm)
        height, width = screen.getmaxyx()
        screen.erase()
        for row, line in enumerate(lines(now, before)[: height - 1]):
            style = curses.A_REVERSE if line == HEADER else curses.A_NORMAL
            screen.addnstr(row, 0, line, width - 1, style)
        screen.refresh()
        before = now
        if screen.getch() in (ord("q"), ord("Q")):
            return


def sample(xm: Invocation) -> Sample:
    """Ask the daemon for everything that is shown."""
    node: Sequence[Any] = xm.call("xend.node.info")
    rows = [domain_row(sxp) for sxp in fetch(xm, ())]
    return Sample(
        at_s=time.monotonic(),
        host=str(child_value(node, "host", "?")),
        nr_cpus=int(child_value(node, "nr_cpus", 0)),
        total_mib=int(child_value(node, "total_memory", 0)),
        free_mib=int(child_value(node, "free_memory", 0)),
        rows=tuple(row for row in rows if row.domid),
    )


def lines(now: Sample, before: Sample | None) -> list[str]:
    """Return the screen; the percentage is of one CPU, since `before`."""
    used = now.total_mib - now.free_mib
    paused = sum("p" in row.state for row in now.rows)
    rates = _cpu_percent(now, before)
    return [
        f"xm top - {now.host}: {len(now.rows)} domains, {paused} paused",
        f"Mem: {now.total_mib}M total, {used}M used, {now.free_mib}M free    CPUs: {now.nr_cpus}",
        HEADER,
        *(
            f"{row.name:>20.20}  {row.state:<6} {row.cpu_time:10.0f} {rates[row.domid]:6.1f} "
            f"{row.memory:8d} {row.vcpus:5d}"
            for row in now.rows
        ),
    ]


def _cpu_percent(now: Sample, before: Sample | None) -> Mapping[str, float]:
    """Return the share of a CPU that each domain had; 0 at the first look, as xentop says."""
    if before is None or now.at_s <= before.at_s:
        return {row.domid: 0.0 for row in now.rows}
    past = {row.domid: row.cpu_time for row in before.rows}
    span_s = now.at_s - before.at_s
    return {
        row.domid: 100 * max(0.0, row.cpu_time - past.get(row.domid, row.cpu_time)) / span_s
        for row in now.rows
    }
