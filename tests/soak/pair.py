"""Two hosts with a proxy before each, and one test guest that goes to and fro between them.

Nothing here sleeps for a race: conditions are asked for until a deadline.
"""

from __future__ import annotations

import http.client
import re
import signal
import socket
import time
import uuid
import xmlrpc.client
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from tests.control.daemons import _end_guests
from tests.peers import nursery
from tests.peers.ports import free_port
from tests.peers.proxy import Proxy
from xendpy.errors import HypervisorError
from xendpy.hypervisor import testguest_link
from xendpy.hypervisor.testguest_process import RUNNING

DEADLINE_S = 300.0  # for ever, as a test knows it; a busy machine is slow to start a process
POLL_S = (0.05, 0.1, 0.2, 0.4)  # the last one from then on: asking costs the machine as well
CONFIG = """(xend-relocation-server yes) (xend-relocation-address 127.0.0.1)
(xend-relocation-port {port}) (xendpy-host-name {name}) (xendpy-hypervisor store)
(xendpy-libvirt-server no) (loglevel INFO) (xendpy-stall-timeout 10) (xendpy-verdict-timeout 10)
(xendpy-peer {peer} (address 127.0.0.1) (port {peer_port}))
"""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(str(self._path))


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _Connection(self._path)


@dataclass
class Host:
    """One daemon and what is left of it between two lives."""

    name: str
    root: Path
    port: int
    process: nursery.Child | None = None
    proxy: Proxy = field(init=False)

    def __post_init__(self) -> None:
        self.proxy = Proxy(("127.0.0.1", self.port))

    def begin(self) -> None:
        """Start the daemon, and return when it answers."""
        with (self.root / "output").open("ab") as output:
            self.process = nursery.start_daemon(self.root, output.fileno())
        until(lambda: self.process_ended() or self.answers(), f"{self.name} to come up")
        assert not self.process_ended(), f"{self.name} did not start: {self.log()}"

    def process_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def answers(self) -> bool:
        with suppress(OSError, xmlrpc.client.Error, http.client.HTTPException):
            self.rpc().xend.domains(0)
            return True
        return False

    def rpc(self) -> xmlrpc.client.ServerProxy:
        path = self.root / "var/run/xend/xmlrpc.sock"
        return xmlrpc.client.ServerProxy(
            "http://xend/RPC2", transport=_Transport(path), allow_none=True
        )

    def arm(self, moment: str) -> None:
        """Have the daemon kill itself at that moment."""
        file = self.root / "at.new"
        file.write_text(moment)
        file.rename(self.root / "at")

    def armed(self) -> bool:
        return (self.root / "at").exists()

    def disarm(self) -> None:
        (self.root / "at").unlink(missing_ok=True)
        (self.root / "moments").unlink(missing_ok=True)

    def moments(self) -> list[str]:
        """Return the moments that were passed since `disarm`, in order."""
        file = self.root / "moments"
        return file.read_text().splitlines() if file.exists() else []

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def revive(self) -> bool:
        """Start the daemon again if it has ended; say whether it had."""
        if not self.process_ended():
            return False
        assert self.process is not None
        assert self.process.returncode == -signal.SIGKILL, f"{self.name} ended: {self.log()}"
        self.begin()
        return True

    def guests(self) -> list[testguest_link.GuestLink]:
        """Connect to the processes of all guests that live here; the caller closes."""
        found = []
        for path in sorted((self.root / "var/run/xend/testguest").glob("*.sock")):
            # One that ends while it is asked is none.
            with suppress(HypervisorError):
                link = testguest_link.connect(path)
                if link is not None:
                    found.append(link)
        return found

    def open_entries(self) -> list[dict[str, Any]]:
        return list(self.rpc().xendpy.handovers())  # type: ignore[call-overload,arg-type]

    def log(self) -> str:
        output = (self.root / "output").read_text(errors="replace")
        return output[-4000:]


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + deadline_s
    pauses = chain(POLL_S, repeat(POLL_S[-1]))
    while not (answer := condition()):
        assert time.monotonic() < end, f"waited {deadline_s:g} s for {what}"
        time.sleep(next(pauses))
    return answer


class Pair:
    """Hosts `a` and `b`, and a guest of `memory_mib` that ticks 10 times a second."""

    def __init__(self, place: Path, *, memory_mib: int = 8) -> None:
        self._stack = ExitStack()
        ports = [free_port(), free_port()]
        self.a, self.b = (
            Host(name, place / name, port) for name, port in zip("ab", ports, strict=True)
        )
        self.place = place
        self._memory_mib = memory_mib
        for host, peer in ((self.a, self.b), (self.b, self.a)):
            file = host.root / "etc/xen/xend-config.sxp"
            file.parent.mkdir(parents=True)
            text = CONFIG.format(
                port=host.port, name=host.name, peer=peer.name, peer_port=peer.proxy.port
            )
            file.write_text(text)

    def __enter__(self) -> Pair:
        for host in (self.a, self.b):
            host.begin()
        self.create()
        return self

    def __exit__(self, *error: object) -> None:
        for host in (self.a, self.b):
            if not host.process_ended():
                host.kill()
            host.proxy.close()
        _end_guests(self.place)

    def create(self) -> None:
        """Build the guest, at host a."""
        self.uuid = str(uuid.uuid4())
        words = "tick=0.1 dirty=1MB/s wss=2MB"
        image = ["linux", ["kernel", "xendpy:ticker"], ["args", words]]
        values = {"name": "testvm1", "uuid": self.uuid, "memory": self._memory_mib, "vcpus": 1}
        config = ["vm", *map(list, values.items()), ["image", image]]
        rpc = self.a.rpc()
        rpc.xend.domain.create(config)
        rpc.xend.domain.unpause("testvm1")

    def ends(self) -> tuple[Host, Host]:
        """Return where the guest runs, and the other host."""
        return (self.a, self.b) if self._lives(self.a) else (self.b, self.a)

    def _lives(self, host: Host) -> bool:
        links = host.guests()
        for link in links:
            link.close()
        return bool(links)

    def settled(self) -> bool:
        """Say whether nothing is open in either journal and exactly one process is left."""
        revived = [host.revive() for host in (self.a, self.b)]  # both, not up to the first
        if any(revived):
            return False
        try:
            return self._agree()
        except (OSError, http.client.HTTPException):  # a daemon that dies at this moment
            return False

    def quiet(self) -> bool:
        """Say whether nothing is under way at either host."""
        rows = [*self.a.rpc().xendpy.migrations(), *self.b.rpc().xendpy.migrations()]
        return all(row["state"] in ENDED for row in rows)

    def _agree(self) -> bool:
        if self.a.open_entries() or self.b.open_entries() or not self.quiet():
            return False
        return [*chain(*self.states().values())] == [RUNNING]

    def states(self) -> dict[str, list[str]]:
        """Return the states of the processes of each host."""
        found: dict[str, list[str]] = {}
        for host in (self.a, self.b):
            links = host.guests()
            found[host.name] = [link.state for link in links]
            for link in links:
                link.close()
        return found

    def examine(self, ticks: int) -> int:
        """Check that the guest is whole and goes on from `ticks`; return its ticks."""
        source, _ = self.ends()
        (link,) = source.guests()
        try:
            faults = link.command("check")["faults"]
        finally:
            link.close()
        assert faults == [], f"memory damaged at {source.name}: {faults}"
        assert source.rpc().xend.domains(0) == ["Domain-0", "testvm1"]
        return int(until(lambda: self._more(source, ticks), "the guest to tick"))

    def _more(self, host: Host, ticks: int) -> int:
        now = self.ticks(host)
        assert now >= ticks, f"the guest's counter went back from {ticks} to {now}"
        return now if now > ticks else 0

    def ticks(self, host: Host) -> int:
        """Return the number of the guest's last tick."""
        lines = re.findall(r"#(\d+)", str(host.rpc().xendpy.console("testvm1")))
        return int(lines[-1]) if lines else 0

    def report(self) -> str:
        """Return all that tells what is wrong."""
        parts = [f"processes: {self.states()}"]
        for host in (self.a, self.b):
            with suppress(Exception):
                parts.append(f"{host.name}: {host.rpc().xend.domains(0)} {host.open_entries()}")
            parts.append(f"{host.name} says:\n{host.log()}")
        return "\n".join(parts)


ENDED = ("done", "failed", "aborted")
