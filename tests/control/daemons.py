"""Daemons as processes, with a stand-in for their service manager."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DEADLINE_S = 120.0


@dataclass
class Daemon:
    """A running daemon; `manager` is where it notifies."""

    root: Path
    process: subprocess.Popen[str]
    manager: socket.socket

    def told(self) -> dict[str, str]:
        """Return the next notification that is neither a sign of life nor a status line alone."""
        while True:
            text = self.manager.recv(4096).decode()
            pairs = dict(line.partition("=")[::2] for line in text.splitlines())
            if set(pairs) - {"STATUS", "WATCHDOG", "EXTEND_TIMEOUT_USEC"}:
                return pairs

    def log(self) -> str:
        return (self.root / "var/log/xen/xend.log").read_text()

    def wait_for_log(self, text: str) -> None:
        """Return when the daemon has written `text` to standard error; fails at its end."""
        assert self.process.stderr is not None
        until = time.monotonic() + DEADLINE_S
        for line in self.process.stderr:
            if text in line:
                return
            assert time.monotonic() < until, f"no {text!r} in time"
        raise AssertionError(f"the daemon ended without {text!r}")


Start = Callable[..., Daemon]


@contextmanager
def starter(tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts daemons below `tmp_path`; all are gone at the end."""
    daemons: list[Daemon] = []

    def begin(config: str = "", root: str = "root") -> Daemon:
        place = tmp_path / root
        file = place / "etc/xen/xend-config.sxp"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"(xendpy-libvirt-server no) (loglevel INFO)\n{config}\n")
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.bind(str(tmp_path / f"notify-{len(daemons)}"))
        manager.settimeout(DEADLINE_S)
        process = subprocess.Popen(
            [sys.executable, "-m", "xendpy", "--root", str(place), "start", "--foreground"],
            env={**os.environ, "NOTIFY_SOCKET": manager.getsockname()},
            stderr=subprocess.PIPE,
            text=True,
        )
        daemons.append(Daemon(place, process, manager))
        return daemons[-1]

    try:
        yield begin
    finally:
        for daemon in daemons:
            daemon.process.kill()
            daemon.process.communicate()
            daemon.manager.close()
        _end_guests(tmp_path)


def _end_guests(tmp_path: Path) -> None:
    """End what outlives a daemon by design: test guests, whose output goes below `tmp_path`."""
    for output in Path("/proc").glob("[0-9]*/fd/1"):
        with suppress(OSError):
            if os.readlink(output).startswith(f"{tmp_path}/"):
                os.kill(int(output.parts[2]), signal.SIGKILL)
