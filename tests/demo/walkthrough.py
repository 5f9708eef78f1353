"""Walk through the manual's chapter on live migration, with two hosts on loopback.

    make demo

et-virt07 and et-virt08, each a daemon below a scratch directory; a guest that logs its host's
name and the date, as the chapter's script does; live to the other host, live back, once offline.
Exits 0 only if no tick of the guest was lost or doubled, its memory is whole, and it is on one
host at a time.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers.hosts import Host, pair
from xendpy.hypervisor import testguest_link

GUEST = "testvm1"
CONFIG = """\
name = "testvm1"
memory = 256
kernel = "xendpy:ticker"
extra = "tick=0.1 dirty=20MB/s wss=16MB"
"""
TICK_S = 0.1
LINE = re.compile(r"(\S+) \S+ \S+ +\d+ (\d\d):(\d\d):(\d\d\.\d+) \S+ \d+ #(\d+)")
SEEN_S = 1.0  # how long the guest is left alone between two journeys


class DemoFailed(Exception):
    """What the walkthrough could not show."""


@dataclass(frozen=True)
class Tick:
    """One line of the guest's log; `at_s` is seconds of the day."""

    host: str
    at_s: float
    number: int


@dataclass(frozen=True)
class Journey:
    """One migration, as the source tells it, and how long `xm migrate` took."""

    how: str
    source: str
    target: str
    told: dict[str, Any]
    command_s: float


def main() -> int:
    """Walk; 0 only if everything was as it should be."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="xendpy-demo-") as directory:
            heading("Two hosts")
            with pair(Path(directory)) as (seven, eight):
                walk(seven, eight)
    except (DemoFailed, AssertionError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


def walk(seven: Host, eight: Host) -> None:
    """Do what the chapter does, and look at what came of it."""
    for host in (seven, eight):
        shown = [line for line in config_lines(host) if line.startswith("(xend-relocation")]
        prompt(host, "grep xend-relocation /etc/xen/xend-config.sxp | grep -v '#'", shown)
    heading("A guest on et-virt08")
    file = eight.root / f"{GUEST}.cfg"
    file.write_text(CONFIG)
    prompt(eight, f"cat {GUEST}.cfg", CONFIG.splitlines())
    run(eight, "create", str(file), shown=f"{GUEST}.cfg")
    run(eight, "list")
    leave_alone(eight)
    heading("Live to et-virt07")
    run(eight, "migrate", "--dry-run", GUEST, "et-virt07")
    journeys = [travel(eight, seven, "live")]
    heading("Live back to et-virt08")
    journeys.append(travel(seven, eight, "live"))
    heading("Offline to et-virt07")
    journeys.append(travel(eight, seven, "offline"))
    heading("What the guest has seen")
    gaps = show_log(seven.console(GUEST), [journey.source for journey in journeys])
    check_memory(seven)
    heading("In short")
    show_table(journeys, gaps)


def travel(source: Host, target: Host, how: str) -> Journey:
    """Migrate the guest, see that it is there and only there, and let it run a while."""
    words = ["migrate", *(["--live"] if how == "live" else []), "--progress"]
    began_s = time.monotonic()
    run(source, *words, GUEST, target.name)
    command_s = time.monotonic() - began_s
    run(source, "list")
    run(target, "list")
    if source.guests() or target.guests() != [GUEST]:
        raise DemoFailed(f"{source.name} has {source.guests()}, {target.name} {target.guests()}")
    journey = Journey(how, source.name, target.name, source.last(), command_s)
    leave_alone(target)
    return journey


def leave_alone(host: Host) -> None:
    """Wait until the guest has ticked for a while where it is."""
    wanted = round(SEEN_S / TICK_S)
    end = time.monotonic() + 20
    while sum(tick.host == host.name for tick in ticks(host.console(GUEST))[-wanted:]) < wanted:
        if time.monotonic() > end:
            raise DemoFailed(f"the guest does not tick on {host.name}")
        time.sleep(TICK_S)


def show_log(lines: list[str], hosts: list[str]) -> list[float]:
    """Print the log where the host changes; return the gaps there, in seconds."""
    found = ticks(lines)
    check_ticks(found)
    gaps, edges = [], [index for index, _ in changes(found)]
    for index in edges:
        gaps.append((found[index].at_s - found[index - 1].at_s) % 86400)
        for text in lines[index - 2 : index]:
            print(f"  {text}")
        print(f"      -- {gaps[-1] * 1000:.0f} ms; a tick comes every {TICK_S * 1000:.0f} ms --")
        for text in lines[index : index + 2]:
            print(f"  {text}")
        print("  ...")
    if [found[index - 1].host for index in edges] != hosts:
        raise DemoFailed(f"the guest's log does not show the way {hosts}")
    print(f"  {len(found)} ticks, numbered {found[0].number} to {found[-1].number}, none missing")
    return gaps


def ticks(lines: list[str]) -> list[Tick]:
    """Return the lines of a guest's log.

    Raises:
        DemoFailed: one is not as the guest writes them.
    """
    found = []
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None:
            raise DemoFailed(f"not a line of the guest's: {line!r}")
        host, hours, minutes, seconds, number = match.groups()
        at_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        found.append(Tick(host, at_s, int(number)))
    return found


def check_ticks(found: list[Tick]) -> None:
    """Check that no tick was lost or doubled."""
    numbers = [tick.number for tick in found]
    if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise DemoFailed("a tick of the guest was lost or doubled")


def changes(found: list[Tick]) -> Iterator[tuple[int, str]]:
    """Yield where the log comes from another host, and which."""
    for index in range(1, len(found)):
        if found[index].host != found[index - 1].host:
            yield index, found[index].host


def check_memory(host: Host) -> None:
    """Have the guest look at every page of its own memory."""
    (path,) = (host.root / "var/run/xend/testguest").glob("*.sock")
    guest = testguest_link.connect(path)
    if guest is None:
        raise DemoFailed("the guest has no process")
    try:
        faults = guest.command("check")["faults"]
    finally:
        guest.close()
    if faults:
        raise DemoFailed(f"the guest's memory is damaged: {'; '.join(faults)}")
    print("  the guest has checked every page of its memory: whole")


def show_table(journeys: list[Journey], gaps: list[float]) -> None:
    """Print one line for each journey."""
    columns = "{:<8} {:<24} {:>8} {:>11} {:>13} {:>11} {:>11}"
    print(columns.format("", "", "total", "downtime", "gap in log", "sent/RAM", "iterations"))
    for journey, gap_s in zip(journeys, gaps, strict=True):
        told = journey.told
        sent = int(told["bytes"]) / (int(told["total_pages"]) * told["page_size"])
        print(
            columns.format(
                journey.how,
                f"{journey.source} -> {journey.target}",
                f"{told['elapsed']:.1f} s",
                f"{told['downtime']['total_s'] * 1000:.0f} ms",
                f"{gap_s * 1000:.0f} ms",
                f"{sent:.2f}",
                len(told["rounds"]),
            )
        )


def config_lines(host: Host) -> list[str]:
    return (host.root / "etc/xen/xend-config.sxp").read_text().splitlines()


def run(host: Host, *argv: str, shown: str = "") -> None:
    """Run an xm command on a host, and print it with what it says."""
    done = host.xm(*argv, check=False)
    words = [shown if shown and word.endswith(shown) else word for word in argv]
    said = done.stdout.replace(f"{host.root}/", "") + done.stderr
    prompt(host, shlex.join(["xm", *words]), said.splitlines())
    if done.returncode:
        raise DemoFailed(f"xm {argv[0]} exited {done.returncode}")


def prompt(host: Host, command: str, lines: list[str]) -> None:
    print(f"[{host.name} ~]# {command}")
    for line in lines:
        print(line)
    sys.stdout.flush()


def heading(text: str) -> None:
    print(f"\n{text}\n{'=' * len(text)}")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
