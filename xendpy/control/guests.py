"""The service calls on guests: what XML-RPC and libvirt's RPC both speak to."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from xendpy.control.events import EventKind
from xendpy.control.live_guests import MIGRATED, LiveGuests, domain_of, names_of, taken
from xendpy.control.managed import ManagedDomains
from xendpy.control.migrator import MigrateRequest, Migrator
from xendpy.control.new_config import PLAIN
from xendpy.control.node import Host
from xendpy.control.workers import Workers
from xendpy.errors import (
    DomainError,
    DomainNotFound,
    DomainStateError,
    HypervisorError,
    Unsupported,
)
from xendpy.guest.domain import NAME_PATTERN, DomainConfig, DomainState, DomainSummary
from xendpy.hypervisor.base import Hypervisor


class Guests(LiveGuests):
    """The guests of this host, running, resting and managed; used in the loop's thread only."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        managed: ManagedDomains,
        workers: Workers,
        host: Host,
        migrator: Migrator | None = None,
    ) -> None:
        super().__init__(hypervisor, managed, workers, host)
        self.migrator = migrator
        self.restarts: Counter[str] = Counter()  # by uuid, since this daemon began
        self.defaults = PLAIN  # of guests that are created here
        self.restarting: dict[str, str] = {}  # uuid to name, of guests between two lives

    async def rename(self, reference: str | int, name: str) -> None:
        """Give the guest another name, here and in its managed configuration."""
        if not NAME_PATTERN.fullmatch(name):
            raise DomainError(name, "Invalid VM Name" if name else "Missing VM Name")
        guest = await self.get(reference)
        with suppress(DomainNotFound):
            other = await self.get(name)
            if other.name == name and other.uuid != guest.uuid:
                raise taken(name, other)
        if guest.domid is not None:
            async with self._operation(guest.uuid, "rename", "being renamed"):
                await self.workers.quick(self.hypervisor.rename, domain_of(guest), name)
        config = self.managed.get(guest.uuid)
        if config is not None:
            await self.workers.quick(self.managed.put, config.renamed(name))

    async def migrate(self, reference: str | int, request: MigrateRequest) -> None:
        """Send the guest to another host; returns when it runs there."""
        if self.migrator is None:
            guest = await self._guest(reference, "migrate")
            raise Unsupported(f"this daemon cannot send domain '{guest.name}' away")
        async with self.leaving(reference, request) as guest:
            await self.migrator.migrate(guest, request)

    @asynccontextmanager
    async def leaving(
        self, reference: str | int, request: MigrateRequest
    ) -> AsyncIterator[DomainSummary]:
        """Hold a guest that may be migrated; leaving the block without an error, it is gone."""
        guest = await self._guest(reference, "migrate")
        if guest.state is DomainState.PAUSED and not guest.at_rest:
            raise DomainStateError(guest.name, "Domain is not running", actual="paused")
        managed = self.managed.get(guest.uuid)
        if request.change_home_server and managed is None:
            raise DomainStateError(guest.name, "Domain is not a managed domain")
        with self.operations.begin(guest.uuid, guest.name, MIGRATED):
            self._check_doubt(guest, "migrate")
            yield guest
        self.events.emit(EventKind.MIGRATED, guest, request.destination)
        if request.change_home_server and not await self._runs_here(guest.uuid):
            await self.workers.quick(self.managed.remove, guest.uuid)
            self.events.emit(EventKind.UNDEFINED, guest)

    async def _runs_here(self, uuid: str) -> bool:
        return any(guest.uuid == uuid for guest in await self.live())

    # Managed domains

    async def new(self, config: DomainConfig) -> DomainSummary:
        """Keep a configuration as a managed domain."""
        others = [item for item in await self.live() if item.uuid != config.uuid]
        for other in others:
            if config.name in names_of(other):
                raise taken(config.name, other)
        await self.workers.quick(self.managed.put, config)
        guest = await self.get(config.uuid)
        self.events.emit(EventKind.DEFINED, guest)
        return guest

    async def delete(self, reference: str | int) -> None:
        """Forget a managed domain that does not run."""
        guest = await self.get(reference)
        if self.managed.get(guest.uuid) is None:
            raise DomainStateError(
                guest.name, "Domain is not managed by Xend lifecycle support", actual="unmanaged"
            )
        if guest.domid is not None:
            raise DomainStateError(guest.name, "Domain is still running", actual="running")
        await self.workers.quick(self.managed.remove, guest.uuid)
        self.events.emit(EventKind.UNDEFINED, guest)

    async def start(
        self, reference: str | int, *, paused: bool = False, force: bool = False
    ) -> None:
        """Run a managed domain, from its saved memory if it was suspended.

        `force`: although it was moved to another host.
        """
        guest = await self.get(reference)
        if guest.domid is not None:
            raise DomainStateError(guest.name, "Domain is already running", actual="running")
        if self.managed.checkpoint(guest.uuid).exists():
            await self.resume(guest.uuid, paused=paused, force=force)
            return
        await self.workers.quick(self._check_owned, guest.config, "start", force=force)
        started = await self._create(guest.config)
        if not paused:
            await self._let_run(domain_of(started))

    async def suspend(self, reference: str | int) -> None:
        """Put a managed domain's memory beside its configuration, and end it."""
        async with self._operation(reference, "suspend", "being suspended") as guest:
            if self.managed.get(guest.uuid) is None:
                raise DomainStateError(
                    guest.name, "Domain is not managed by Xend lifecycle support"
                )
            await self._save(guest, self.managed.checkpoint(guest.uuid), checkpoint=False)
            self.events.emit(EventKind.SUSPENDED, guest)

    async def resume(
        self, reference: str | int, *, paused: bool = False, force: bool = False
    ) -> None:
        """Run a managed domain from where `suspend` stopped it."""
        guest = await self.get(reference)
        if guest.domid is not None:
            raise DomainStateError(guest.name, "Domain is already running", actual="running")
        file = self.managed.checkpoint(guest.uuid)
        if not file.exists():
            raise DomainStateError(guest.name, "Domain is not suspended", actual="halted")
        with self.operations.begin(guest.uuid, guest.name, "being resumed"):
            await self.restore(str(file), paused=paused, force=force)
            await self.workers.quick(file.unlink)
        self.events.emit(EventKind.RESUMED, guest)

    # What only some drivers can

    async def set_memory(self, reference: str | int, mib: int) -> None:
        """Ask the guest to have `mib` MiB."""
        await self._tune(reference, "set_memory", "change a guest's memory", _positive(mib))

    async def set_maxmem(self, reference: str | int, mib: int) -> None:
        """Let the guest have at most `mib` MiB."""
        await self._tune(reference, "set_maxmem", "change a guest's memory limit", _positive(mib))

    async def set_vcpus(self, reference: str | int, count: int) -> None:
        """Let the guest have `count` online vcpus."""
        await self._tune(reference, "set_vcpus", "change a guest's vcpus", _positive(count))

    async def sysrq(self, reference: str | int, key: str) -> None:
        """Press a magic SysRq key in the guest."""
        await self._tune(reference, "send_sysrq", "send a SysRq key", key)

    async def _tune(self, reference: str | int, call: str, what: str, value: int | str) -> None:
        async with self._operation(reference, "change", "being changed") as guest:
            await self._able(call, what, domain_of(guest), value)


def _positive(value: int) -> int:
    if value < 1:
        raise HypervisorError(f"must be at least 1, not {value}")
    return value
