"""Two hosts on one machine: daemons as processes on loopback addresses of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.peers.ports import free_port
from xendpy.cli.rpc import Server

DEADLINE_S = 180.0
NAMES = {"et-virt07": "127.0.0.1", "et-virt08": "127.0.0.2"}

CONFIG = """\
(xend-relocation-server yes)
(xend-relocation-port {port})
(xend-relocation-address '{address}')
(xend-relocation-hosts-allow '^127\\\\.')
(xendpy-libvirt-server no)
(xendpy-host-name {name})
"""

TICKER = """\
name = "{name}"
memory = {memory}
kernel = "xendpy:ticker"
extra = "{extra}"
"""


@dataclass
class Host:
    """One daemon and its commands; every path lies below `root`."""

    name: str
    root: Path
    address: str
    port: int
    program: tuple[str, ...] = (sys.executable, "-m")
    server: Server = field(init=False)

    def __post_init__(self) -> None:
        self._connect()

    def _connect(self) -> None:
        self.server = Server(f"httpu://{self.root}/var/run/xend/xmlrpc.sock")

    def configure(self, peers: str = "", more: str = "") -> None:
        """Write the configuration file."""
        file = self.root / "etc/xen/xend-config.sxp"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = CONFIG.format(port=self.port, address=self.address, name=self.name)
        file.write_text(f"{text}{peers}{more}")

    def start(self) -> None:
        """Start the daemon; its listeners are open when this returns."""
        done = self.xend("start")
        assert done.returncode == 0, done.stderr
        self._connect()  # the old one, if any, led to another daemon

    def stop(self) -> None:
        self.xend("stop")

    def kill(self) -> None:
        """End the daemon as a power cut would."""
        pid = self.pid()
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            _wait_for_end(handle)

    def pid(self) -> int:
        return int((self.root / "var/run/xend.pid").read_text())

    def xend(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self._run("xendpy", *argv)

    def xm(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one xm command line; with `check` it must succeed."""
        done = self._run("xendpy.cli.xm", *argv)
        assert not check or done.returncode == 0, f"xm {argv}: {done.stdout}{done.stderr}"
        return done

    def begin(self, *argv: str) -> subprocess.Popen[str]:
        """Begin an xm command that goes on by itself."""
        return self._begin("xendpy.cli.xm", *argv)

    def begin_xend(self, *argv: str) -> subprocess.Popen[str]:
        """Begin an xend command that goes on by itself."""
        return self._begin("xendpy", *argv)

    def _begin(self, module: str, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.program, module, *argv],
            env=self.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _run(self, module: str, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.program, module, *argv],
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def environ(self) -> dict[str, str]:
        return {**os.environ, "XENDPY_ROOT": str(self.root), "TERM": "dumb"}

    def call(self, method: str, *args: Any) -> Any:
        """Call the daemon over XML-RPC."""
        return self.server.call(method, *args)

    def guests(self) -> list[str]:
        """Return the names of the guests that are here."""
        return [name for name in self.call("xend.domains", False) if name != "Domain-0"]

    def state(self, guest: str) -> str:
        """Return a guest's state as `xm list` shows it."""
        rows = [row.split() for row in self.xm("list").stdout.splitlines()]
        return next(row[4] for row in rows if row[0] == guest)

    def console(self, guest: str) -> list[str]:
        """Return what a guest has logged, line by line."""
        return str(self.call("xendpy.console", guest)).splitlines()

    def create(
        self,
        name: str = "testvm1",
        *,
        memory: int = 16,
        extra: str = "tick=0.05",
        more: str = "",
    ) -> None:
        """Create and run a ticking guest; `more` goes into its configuration file."""
        file = self.root / f"{name}.cfg"
        file.write_text(TICKER.format(name=name, memory=memory, extra=extra) + more)
        self.xm("create", str(file))

    def last(self) -> dict[str, Any]:
        """Return the latest outgoing migration, as `xendpy.migration` tells it."""
        rows = [row for row in self.call("xendpy.migrations") if row["direction"] == "out"]
        return dict(self.call("xendpy.migration", rows[-1]["id"]))

    def in_doubt(self) -> list[dict[str, Any]]:
        return [entry for entry in self.call("xendpy.handovers") if entry["in_doubt"]]

    def journal(self) -> list[dict[str, Any]]:
        """Return the journal as it is on disk, oldest entry first."""
        files = (self.root / "var/lib/xend").glob("**/migrations/*.json")
        return sorted(
            (json.loads(file.read_text()) for file in files), key=lambda entry: entry["created_s"]
        )

    def connect(self, address: str) -> socket.socket:
        """Connect to the relocation port from another address of this machine."""
        where = (self.address, self.port)
        return socket.create_connection(where, timeout=60, source_address=(address, 0))

    def log(self) -> str:
        return (self.root / "var/log/xen/xend.log").read_text()


def until(condition: Callable[[], Any], what: str, *, timeout_s: float = DEADLINE_S) -> Any:
    """Return what `condition` gives once it is true; fail after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def serving(host: Host) -> Iterator[Host]:
    """Run one host that is configured; guests and daemon are gone at the end."""
    try:
        host.start()
        yield host
    finally:
        remove_guests(host)
        host.stop()


@contextlib.contextmanager
def pair(directory: Path, *, more: str = "") -> Iterator[tuple[Host, Host]]:
    """Run et-virt07 and et-virt08; guests and daemons are gone at the end."""
    port = host_port()
    hosts = [Host(name, directory / name, address, port) for name, address in NAMES.items()]
    peers = "".join(f"(xendpy-peer {name} (address {ip}))\n" for name, ip in NAMES.items())
    try:
        for host in hosts:
            host.configure(peers, more)
            host.start()
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            remove_guests(host)
            host.stop()


def remove_guests(host: Host) -> None:
    """Let nothing of a host outlive it, whatever state the host is in."""
    with contextlib.suppress(Exception):
        for row in host.call("xendpy.migrations"):
            if row["state"] not in ("done", "failed", "aborted"):
                host.call("xendpy.migration.cancel", row["id"])
        for entry in host.in_doubt():
            host.call("xendpy.migration.settle", entry["id"], "keep")
        until(lambda: not any(n.startswith("migrating-") for n in host.guests()), "no migration")
        for name in host.guests():
            host.call("xend.domain.destroy", name)


def host_port() -> int:
    """Return a port that is free on the addresses of both hosts."""
    return free_port(*NAMES.values())


def _wait_for_end(handle: int) -> None:
    import select

    poll = select.poll()
    poll.register(handle, select.POLLIN)
    assert poll.poll(DEADLINE_S * 1000), "the daemon lives on"
    os.close(handle)
