"""A receiving host for tests: the real server over the real store, on a port of its own."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xendpy.guest.domain import Domain
from xendpy.hypervisor.base import Capabilities
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.journal import Journal
from xendpy.migration.reception import ReceiveLimits
from xendpy.paths import Paths
from xendpy.relocation.audit import Audit
from xendpy.relocation.from_xend import ReceiveFromXend
from xendpy.relocation.hosts import HostsAllow
from xendpy.relocation.operation import Incoming
from xendpy.relocation.server import RelocationServer
from xendpy.relocation.settings import RelocationSettings


class RunningStore(StoreHypervisor):
    """A store that says it runs its guests, and remembers which ones it was asked to."""

    def __init__(self, paths: Paths) -> None:
        super().__init__(paths)
        self.unpaused: list[str] = []

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), runs_guests=True)

    def unpause(self, domain: Domain) -> None:
        self.unpaused.append(domain.name)


@dataclass
class Recorded:
    """Remembers what the server reports, and lets a test wait for it."""

    begun: list[Incoming] = field(default_factory=list)
    ended_ones: list[Incoming] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def began(self, incoming: Incoming) -> None:
        self.begun.append(incoming)
        self._tell()

    def ended(self, incoming: Incoming) -> None:
        self.ended_ones.append(incoming)
        self._tell()

    def refuse(self, reason: str) -> None:
        self.refused.append(reason)
        self._tell()

    def _tell(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def wait(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(80), self.changed:
            await self.changed.wait_for(condition)


@dataclass
class Host:
    """What a test needs of a running host."""

    server: RelocationServer
    store: RunningStore
    events: Recorded
    journal: Journal

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.server.port)

    async def ended(self, count: int = 1) -> Incoming:
        """Wait for the end of `count` migrations, return the last one."""
        await self.events.wait(lambda: len(self.events.ended_ones) >= count)
        return self.events.ended_ones[-1]

    async def begun(self, count: int = 1) -> Incoming:
        """Wait for the beginning of `count` migrations, return the last one."""
        await self.events.wait(lambda: len(self.events.begun) >= count)
        return self.events.begun[-1]

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=40)


@asynccontextmanager
async def receiving(
    root: Path,
    *,
    hosts_allow: str = "",
    resolve: Callable[[str], str] = lambda address: address,
    confirm: Callable[[str, str], bool] = lambda name, address: True,
    limits: ReceiveLimits | None = None,
    eof_timeout_s: float = 20.0,
    **settings: Any,
) -> AsyncIterator[Host]:
    """Run a host below `root`; `settings` are those of RelocationSettings."""
    store = RunningStore(Paths(root))
    try:
        journal = Journal(Paths(root).state_dir / "migrations", Durable(), time.time)
        operation = ReceiveFromXend(
            hypervisor=store,
            journal=journal,
            limits=limits or ReceiveLimits(),
            eof_timeout_s=eof_timeout_s,
            at_home=str,
        )
        operations = {"receive": operation}
        if settings.get("tls"):
            operations["sslreceive"] = replace(operation, word="sslreceive")
        wanted = {"listens": True, "address": "127.0.0.1", "port": 0, **settings}
        events = Recorded()
        async with RelocationServer(
            RelocationSettings(hosts_allow=HostsAllow.parse(hosts_allow), **wanted),
            operations,
            events=events,
            resolve=resolve,
            confirm=confirm,
            audit=Audit(events.refuse),
        ) as server:
            yield Host(server, store, events, journal)
    finally:
        store.close()


def converse(address: tuple[str, int], data: bytes, *, half_close: bool, wait_s: float) -> bytes:
    """Send `data`, and return all that comes until the end or `wait_s` of silence."""
    with socket.create_connection(address, timeout=40) as sock:
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        sock.settimeout(wait_s)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Return what comes until the end, a reset, or the socket's timeout."""
    answer = bytearray()
    try:
        while data := sock.recv(4096):
            answer += data
    except (TimeoutError, ConnectionResetError):
        pass
    return bytes(answer)
