"""What a run of the lab shows: every command as typed, what it said, and how long steps took."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO

from tests.lab.errors import LabError
from tests.lab.machine import COMMAND_S, Machine
from tests.lab.recipe import HOSTS

POLL_S = 0.5
PATIENCE_S = 240.0  # for what an emulated host does in seconds
SHOWN_LINES = 60


class StepFailed(Exception):
    """Something was not as it must be."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    title: str
    seconds: float
    failure: str = ""
    remark: str = ""


@dataclass
class Host:
    """One domain 0, as somebody at its console sees it."""

    machine: Machine

    @property
    def name(self) -> str:
        return HOSTS[self.machine.number]

    def run(self, command: str, *, status: int | None = 0, timeout_s: float = COMMAND_S) -> str:
        """Type a command, show what it says, return that.

        Raises:
            StepFailed: it ended with another status than `status`; None: any will do.
        """
        print(f"[root@{self.name} ~]# {command}", flush=True)
        ended, output = self.machine.run(command, timeout_s=timeout_s)
        lines = output.splitlines()
        for line in lines[:SHOWN_LINES]:
            print(line)
        if len(lines) > SHOWN_LINES:
            print(f"... {len(lines) - SHOWN_LINES} lines more")
        if ended:
            print(f"(status {ended})", flush=True)
        if status is not None and ended != status:
            raise StepFailed(f"{self.name}: `{command}` ended with {ended}, not {status}")
        return output

    def ask(self, command: str) -> str:
        """Run a command without showing it, whatever its status."""
        return self.machine.run(command)[1]

    def guests(self) -> list[str]:
        """Return the names of the guests that Xen has here, as xl lists them."""
        return [line.split()[0] for line in self.ask("xl list").splitlines()[2:]]


@dataclass
class Session:
    """One run; `rows` is its table."""

    seven: Host
    eight: Host
    rows: list[Row] = field(default_factory=list)
    remark: str = ""
    fault: str = ""  # only faults in whose title this pattern is
    began_s: float = field(default_factory=time.monotonic)
    # What passes between the hosts in one whole migration: lines and frames, and bytes.
    units: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.seven, self.eight

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Do one step; what fails in it is noted and goes on upwards."""
        print(f"\n=== {title}", flush=True)
        began_s, self.remark = time.monotonic(), ""
        try:
            yield
        except (StepFailed, LabError, AssertionError) as error:
            traceback.print_exc(limit=-3, file=sys.stdout)
            failure = str(error).partition("\n")[0]
            self.rows.append(Row(title, time.monotonic() - began_s, failure or repr(error)))
            print(f"FAILED: {failure}", flush=True)
            raise StepFailed(failure) from error
        self.rows.append(Row(title, time.monotonic() - began_s, remark=self.remark))

    def group(self, work: Callable[[Session], None]) -> bool:
        """Do steps that depend on each other, up to the first failure; say if there was none."""
        try:
            work(self)
            return True
        except StepFailed:
            for host in self.hosts:
                print(f"--- the last of {host.name}'s xend.log")
                with suppress(LabError):
                    print(host.ask("tail -n 40 /var/log/xen/xend.log"))
            return False

    def groups_beside(
        self, work: Callable[[Session], None], other: Callable[[Session], None]
    ) -> None:
        """Do two groups at the same time, which may not need each other's host.

        `other`, a module's function, runs in a process of its own; what it shows comes last.
        """
        with ProcessPoolExecutor(1) as pool:
            beside = pool.submit(_in_silence, other, *self.hosts)
            self.group(work)
            shown, rows = beside.result()
        print(shown, end="", flush=True)
        self.rows += rows

    def each(self, steps: Iterable[Step], after_failure: Callable[[Session], None]) -> None:
        """Do those faults that were asked for, each of them whether or not another failed."""
        for title, work in steps:
            if re.search(self.fault, title):
                try:
                    with self.step(title):
                        work(self)
                except StepFailed:
                    after_failure(self)

    def table(self) -> bool:
        """Show the table; say whether every step went well."""
        width = max((len(row.title) for row in self.rows), default=0)
        print()
        for row in self.rows:
            verdict = f"FAILED: {row.failure}" if row.failure else "ok"
            print(f"{row.title:<{width}}  {row.seconds:7.1f} s  {verdict}  {row.remark}".rstrip())
        total = time.monotonic() - self.began_s  # steps of two hosts may have run side by side
        bad = sum(bool(row.failure) for row in self.rows)
        print(f"{'in all':<{width}}  {total:7.1f} s  {f'{bad} failed' if bad else 'ok'}")
        return not bad and bool(self.rows)


def _in_silence(
    work: Callable[[Session], None], seven: Host, eight: Host
) -> tuple[str, list[Row]]:
    shown, session = StringIO(), Session(seven, eight)
    with redirect_stdout(shown):
        session.group(work)
    return shown.getvalue(), session.rows


Step = tuple[str, Callable[[Session], None]]


def until(condition: Callable[[], object], what: str, *, timeout_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds.

    Raises:
        StepFailed: it does not, for `timeout_s`.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise StepFailed(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)


def check(condition: object, what: str) -> None:
    """Raise StepFailed unless `condition` holds."""
    if not condition:
        raise StepFailed(what)


def matching(pattern: str, text: str, what: str) -> re.Match[str]:
    """Return the match of a pattern that must be there."""
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise StepFailed(f"{what}: nothing matches {pattern!r}")
    return found
