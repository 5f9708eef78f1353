"""A host whose xl is a fake; driver, journal, server and dialler are real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.guests import guest, send_guest, span
from tests.peers.fake_xl import FakeGuest, FakeXl
from tests.peers.relocation_host import Recorded
from tests.peers.xend import bound_buffers
from xendpy.config import XendConfig
from xendpy.control.dialling import Dialler, Order, choose_peer
from xendpy.control.outbound import Outgoing, Sender
from xendpy.control.ownership import Ownership
from xendpy.control.wiring import operations
from xendpy.control.workers import Workers
from xendpy.guest.domain import Domain, DomainConfig
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.xl import XlHypervisor
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.migration.handover import Direction, Entry, new_id
from xendpy.migration.journal import Journal
from xendpy.migration.send import MigrationPlan
from xendpy.paths import Paths
from xendpy.relocation.audit import Audit
from xendpy.relocation.from_xendpy import Landings
from xendpy.relocation.hosts import HostsAllow
from xendpy.relocation.outgoing import Outcome
from xendpy.relocation.server import RelocationServer
from xendpy.relocation.settings import RelocationSettings

# The same guest without a network interface: hosts of tests have no bridges.
GUEST = DomainConfig.parse(guest().encode().replace(b"(bridge xenbr0)", b""))
RULES = GuestRules(guest_paths=("/boot",), exists=lambda path: True)


@dataclass
class XlHost:
    """Guests are made with `start`, sent with `send`."""

    root: Path
    tool: FakeXl = field(default_factory=FakeXl)
    config: XendConfig = field(default_factory=XendConfig)
    rules: GuestRules = RULES
    port: int = 0
    events: Recorded = field(default_factory=Recorded)

    def __post_init__(self) -> None:
        self.workers = Workers()
        self.boot()

    def boot(self) -> None:
        """Begin, or begin anew, on what is left on disk and in xl."""
        paths = Paths(self.root)
        self.hypervisor = XlHypervisor(paths, tool=self.tool, rules=self.rules)
        self.journal = Journal(paths.state_dir / "migrations", Durable(), time.time)
        self.ownership = Ownership(self.hypervisor, self.journal, self.workers)
        self.dialler = Dialler(self.hypervisor.host_id, lambda: self.config, paths)
        self.sender = Sender(self.hypervisor, self.journal, self.dialler)

    def start(self, config: DomainConfig | None = None, frames: Any = None) -> Domain:
        """Have a running guest."""
        with self.hypervisor.restore(config or GUEST, migration_id="d" * 32) as session:
            send_guest(session, span(0, 40) if frames is None else frames, 9)
            domain = session.complete()
        self.hypervisor.unpause(domain)
        return domain

    def order(
        self,
        port: int,
        *,
        live: bool = True,
        release: str = "",
        tool_bits: int = 0,
        lossy: bool = False,
        config: DomainConfig | None = None,
    ) -> Outgoing:
        (summary,) = self.hypervisor.domains()
        assert summary.domid is not None
        domain = Domain(domid=summary.domid, uuid=summary.uuid, name=summary.name)
        peer = choose_peer(
            self.config, "127.0.0.1", port=port, release=release, tool_bits=tool_bits
        )
        plan = MigrationPlan(live=live, verdict_timeout_s=20.0, lossy=lossy)
        order = Order(domain, config or summary.config, peer, plan)
        return self.sender.begin(new_id(), order)

    async def send(self, port: int, **more: Any) -> tuple[Outcome, Entry]:
        """Send the one guest; raises as `Sender.run`."""
        outgoing = self.order(port, **more)
        outcome = await asyncio.to_thread(self.sender.run, outgoing)
        return outcome, self.entry(outgoing)

    def entry(self, outgoing: Outgoing) -> Entry:
        found = self.journal.get(outgoing.entry.id, Direction.OUT)
        assert found is not None
        return found

    async def resolve(self, port: int) -> None:
        """Ask the targets of what is open, at `port`, and act on their answers."""
        for entry in self.journal.open_entries():
            if entry.direction is Direction.OUT:
                asked = replace(entry, port=port)
                answer = await asyncio.to_thread(self.dialler.ask_peer, asked)
                await self.ownership.heard(entry, answer.state)

    async def ended(self) -> None:
        """Return when no guest is on its way in any more."""
        await self.events.wait(lambda: len(self.events.begun) == len(self.events.ended_ones))

    @property
    def guests(self) -> dict[str, str]:
        """What xl lists: flags by name."""
        return {guest.name: guest.flags for guest in self.tool.guests}

    def only(self) -> FakeGuest:
        (found,) = self.tool.guests
        return found

    def close(self) -> None:
        self.hypervisor.close()
        self.workers.close()


@asynccontextmanager
async def listening(host: XlHost, *, buffer_bytes: int = 0) -> AsyncIterator[XlHost]:
    """Let `host` receive, on a port of its own; `buffer_bytes`: see bound_buffers."""
    served = operations(
        host.config, host.hypervisor, host.journal, Landings(), host.hypervisor.host_id, str
    )
    async with RelocationServer(
        RelocationSettings(
            hosts_allow=HostsAllow.parse(""), listens=True, address="127.0.0.1", port=0
        ),
        served,
        events=host.events,
        resolve=lambda address: address,
        confirm=lambda name, address: True,
        audit=Audit(host.events.refuse),
    ) as server:
        if buffer_bytes:
            bound_buffers(server, buffer_bytes)
        host.port = server.port
        yield host
