"""`xm list`, `uptime`, `domid`, `domname`, `domstate`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from xendpy.cli.domains import child_value, domain_row, fetch
from xendpy.cli.options import Invocation, UsageError

ONE_NOT_BOTH = "You may specify either a {} or a particular VM, but not both"


def list_domains(xm: Invocation) -> int | None:
    """Print the table of domains, or with `-l` all there is to know about each."""
    state = xm.options.get("state", "all")
    pool = xm.options.get("pool")
    if xm.params and state != "all":
        raise UsageError(ONE_NOT_BOTH.format("state"))
    if xm.params and pool:
        raise UsageError(ONE_NOT_BOTH.format("pool"))
    if xm.given("vcpus"):
        from xendpy.cli.cpus import vcpu_list

        print("xm list -v is deprecated.  Please use xm vcpu-list.", file=sys.stderr)
        return vcpu_list(xm)
    domains = fetch(xm, xm.params, state=state, full=xm.given("long"))
    if pool and not xm.params:
        domains = [sxp for sxp in domains if child_value(sxp, "pool_name", "") == pool]
    if xm.given("long"):
        from xendpy.sxp import pretty

        for sxp in domains:
            print(pretty(sxp), end="")
        return 0
    _print_table(domains, label=xm.given("label"))
    # A guest in doubt stands still; nobody is asked as long as all of them run.
    if any(set("ps") & set(domain_row(sxp).state) for sxp in domains):
        from xendpy.cli.migrations import in_doubt_line

        if doubt := in_doubt_line(xm.call):
            print(doubt, file=sys.stderr)
    return 0


def _print_table(domains: list[list[object]], *, label: bool) -> None:
    header = f"{'Name':<40} {'ID':>5} {'Mem':>5} {'VCPUs':>5} {'State':>10} {'Time(s)':>9}"
    rows = [domain_row(sxp) for sxp in domains]
    if label:
        header += f" {'Label':<10}"
        rows.sort(key=lambda row: row.label.lower())
    print(header)
    for row in rows:
        line = (
            f"{row.name:<40} {row.domid:>5} {row.memory:5d} {row.vcpus:5d} "
            f"{row.state:>10} {row.cpu_time:8.1f}"
        )
        print(f"{line} {row.label:>10}" if label else line)


def uptime(xm: Invocation) -> None:
    """Print since when domains run; Domain-0's is the host's."""
    short = xm.given("short")
    domains = fetch(xm, xm.params)
    if not short:
        print(f"{'Name':<33} {'ID':>4} Uptime ")
    for sxp in domains:
        row = domain_row(sxp)
        seconds = row.up_time
        if row.domid == "":
            seconds = 0
        elif row.domid == "0":
            seconds = float(Path("/proc/uptime").read_text().split()[0])
        if short:
            clock = time.strftime(" %H:%M:%S")
            text = span(round(seconds)).rpartition(":")[0]
            print(f"{clock} up {text}, {row.name} ({row.domid})")
        else:
            print(f"{row.name:<32} {row.domid:>5} {span(round(seconds))}")


def span(seconds: int) -> str:
    """Return a time as xm prints it: `2 days,  3:04:05`."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours:2d}:{minutes:02d}:{seconds:02d}"
    if days == 0:
        return clock
    return f"{days} day{'s' if days > 1 else ''}, {clock}"


def domid(xm: Invocation) -> None:
    """Print the id of a domain; `None` for one that does not run, as xm does."""
    print(child_value(xm.call("xend.domain", xm.params[0]), "domid"))


def domname(xm: Invocation) -> None:
    """Print the name of a domain."""
    print(child_value(xm.call("xend.domain", xm.params[0]), "name"))


# In the order in which xm looked for them.
STATES = (
    ("s", "shutoff"),
    ("b", "idle"),
    ("d", "shutdown"),
    ("r", "running"),
    ("c", "crashed"),
)


def domstate(xm: Invocation) -> None:
    """Print the state of a domain in a word."""
    state = domain_row(fetch(xm, xm.params)[0]).state
    if not state:
        print("shutoff")
        return
    for letter, word in STATES:
        if letter in state:
            print(word)
            return
    if "p" in state:
        by_admin = xm.call("xend.domain.getpauseflag", xm.params[0])
        print("paused by admin" if by_admin else "paused")
