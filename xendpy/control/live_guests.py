"""Calls on one live guest, and what every call on guests needs.

One set of meanings for every client: xend's, down to the texts (XendDomain.py, Xen 4.4). Calls
are coroutines of the event loop; the driver works in threads. A guest has one long operation at a
time: the second caller is told what the first is doing. Nothing is locked across I/O.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from xendpy.control.abilities import ability
from xendpy.control.domain_sxp import DOMAIN_0
from xendpy.control.events import EventKind, Events
from xendpy.control.lookup import Lookup
from xendpy.control.managed import ManagedDomains
from xendpy.control.node import Host
from xendpy.control.operations import Operations
from xendpy.control.workers import Workers
from xendpy.errors import (
    DomainError,
    DomainExists,
    DomainStateError,
    HypervisorError,
    StreamError,
    Unsupported,
)
from xendpy.guest.domain import Domain, DomainConfig, DomainSummary
from xendpy.hypervisor.base import Hypervisor
from xendpy.migration.saved_file import Cancel, restore_file, save_file

MIGRATED = "being migrated"
MOVING = "migrating-"  # goes before the name of a guest while it moves, as in xend
SHUTDOWN_REASONS = ("poweroff", "reboot", "suspend", "crash", "halt")

log = logging.getLogger(__name__)


class Owner(Protocol):
    """Who knows which guests this host owns; control.ownership.Ownership."""

    def refuse_unless_owned(
        self, uuid: str, name: str, verb: str, *, force: bool = False, by_name: bool = False
    ) -> None: ...

    def refuse_in_doubt(self, uuid: str, name: str, verb: str) -> None: ...


class LiveGuests(Lookup):
    """The guests that Xen, or the store, has; used in the loop's thread only."""

    def __init__(
        self, hypervisor: Hypervisor, managed: ManagedDomains, workers: Workers, host: Host
    ) -> None:
        super().__init__(hypervisor, managed, workers, host)
        self.owner: Owner | None = None
        self.events = Events()
        self.operations = Operations()

    async def live(self) -> list[DomainSummary]:
        """Return Domain-0 and the live guests by id; one that moves goes by `migrating-NAME`."""
        shown: list[DomainSummary] = []
        moving: set[str] = set()  # a localhost migration has two guests of one uuid
        for guest in await super().live():
            moves = self.operations.of(guest.uuid) == MIGRATED and guest.uuid not in moving
            if moves:
                moving.add(guest.uuid)
            shown.append(replace(guest, name=MOVING + guest.name) if moves else guest)
        return shown

    async def console(self, reference: str | int) -> bytes:
        """Return what the guest has printed, as far back as its driver keeps it."""
        guest = await self._guest(reference, "show the console of")
        running = await self._able("running", "show a guest's console", domain_of(guest))
        return bytes(await self.workers.quick(running.console))

    async def create(
        self, config: DomainConfig, *, force: bool = False, autostart: bool = False
    ) -> DomainSummary:
        """Build a new guest, paused; `force`: although it was moved to another host.

        `autostart`: nobody looks on. A guest of this name that was moved away is then the same
        one, although a file without a uuid gives it another every time; whoever asks for it by
        hand, or as a cluster's manager, knows better.
        """
        await self._check_free(config)
        await self.workers.quick(
            self._check_owned, config, "create", force=force, by_name=autostart
        )
        return await self._create(config)

    async def _create(self, config: DomainConfig) -> DomainSummary:
        with self.operations.begin(config.uuid, config.name, "being created"):
            domain = await self.workers.quick(self.hypervisor.create, config)
            guest = await self.get(domain.uuid)
            self.events.emit(EventKind.STARTED, guest, "booted")
            return guest

    async def save(self, reference: str | int, path: str, *, checkpoint: bool = False) -> None:
        """Write the guest to a file of xend's format; gone from here without `checkpoint`."""
        async with self._operation(reference, "save", "being saved") as guest:
            await self._save(guest, _absolute(path), checkpoint=checkpoint)

    async def _save(self, guest: DomainSummary, path: Path, *, checkpoint: bool) -> None:
        self._check_doubt(guest, "save")
        cancel = Cancel()

        def work() -> None:
            report = save_file(
                self.hypervisor, domain_of(guest), path, checkpoint=checkpoint, cancel=cancel
            )
            log.info(
                "domain %s saved to %s: %d pages, %d bytes",
                guest.name, path, report.nr_pages, report.nr_bytes,
            )  # fmt: skip

        await self.workers.long(work, lambda: cancel.cancel("shutdown"))
        if not checkpoint:
            self.events.emit(EventKind.STOPPED, guest, "saved")

    async def restore(
        self, path: str, *, paused: bool = False, force: bool = False
    ) -> DomainSummary:
        """Build the guest that a save file holds; it runs, if it can here, unless `paused`."""
        cancel = Cancel()
        file = _absolute(path)

        def check(config: DomainConfig) -> None:
            self._check_owned(config, "restore", force=force)

        try:
            domain = await self.workers.long(
                lambda: restore_file(self.hypervisor, file, cancel=cancel, check=check),
                lambda: cancel.cancel("shutdown"),
            )
        except StreamError as error:
            raise HypervisorError(f"Restore failed: {file}: {error}") from error
        if not paused:
            await self._let_run(domain)
        guest = await self.get(domain.uuid)
        log.info("domain %s restored from %s", guest.name, file)
        self.events.emit(EventKind.STARTED, guest, "restored")
        return guest

    async def _let_run(self, domain: Domain) -> None:
        """Unpause a guest that has just come; one that can only rest here stays as it is."""
        with suppress(Unsupported, DomainStateError):
            await self.workers.quick(self.hypervisor.unpause, domain)

    async def destroy(self, reference: str | int) -> None:
        """End the guest at once."""
        async with self._operation(reference, "destroy", "being destroyed") as guest:
            self._check_doubt(guest, "destroy")
            await self.workers.quick(self.hypervisor.destroy, domain_of(guest))
            self.events.emit(EventKind.STOPPED, guest, "destroyed")

    async def shutdown(self, reference: str | int, reason: str = "poweroff") -> None:
        """Ask the guest to end; returns at once."""
        if reason not in SHUTDOWN_REASONS:
            raise DomainError(str(reference), f"Invalid reason: {reason}")
        async with self._operation(reference, "shutdown", "being shut down") as guest:
            await self.workers.quick(self.hypervisor.shutdown, domain_of(guest), reason)

    async def reboot(self, reference: str | int) -> None:
        await self.shutdown(reference, "reboot")

    async def pause(self, reference: str | int) -> None:
        async with self._operation(reference, "pause", "being paused") as guest:
            await self.workers.quick(self.hypervisor.pause, domain_of(guest))
            self.events.emit(EventKind.PAUSED, guest)

    async def unpause(self, reference: str | int) -> None:
        async with self._operation(reference, "unpause", "being unpaused") as guest:
            self._check_doubt(guest, "unpause")
            await self.workers.quick(self.hypervisor.unpause, domain_of(guest))
            self.events.emit(EventKind.UNPAUSED, guest)

    # The parts of all that

    @asynccontextmanager
    async def _operation(
        self, reference: str | int, verb: str, what: str
    ) -> AsyncIterator[DomainSummary]:
        """Find a live guest, hold it for one operation, and give it as it is then."""
        found = await self._guest(reference, verb)
        with self.operations.begin(found.uuid, found.name, what):
            yield await self._guest(found.uuid, verb)

    async def _guest(self, reference: str | int, verb: str) -> DomainSummary:
        guest = await self.get(reference)
        if guest.domid == 0:
            raise DomainStateError(DOMAIN_0, f"Cannot {verb} privileged domain 0")
        if guest.domid is None:
            raise DomainStateError(
                guest.name, f"Domain '{guest.name}' is not running", actual="halted"
            )
        return guest

    async def _check_free(self, config: DomainConfig) -> None:
        for guest in await self.guests():
            if config.name in names_of(guest) and guest.uuid != config.uuid:
                raise taken(config.name, guest)
            if guest.uuid == config.uuid and guest.domid is not None:
                raise DomainExists(
                    config.name, f"Domain '{guest.name}' already exists with ID '{guest.domid}'"
                )

    def _check_owned(
        self, config: DomainConfig, verb: str, *, force: bool, by_name: bool = False
    ) -> None:
        if self.owner is not None:
            self.owner.refuse_unless_owned(
                config.uuid, config.name, verb, force=force, by_name=by_name
            )

    def _check_doubt(self, guest: DomainSummary, verb: str) -> None:
        if self.owner is not None:
            self.owner.refuse_in_doubt(guest.uuid, guest.name, verb)

    async def _able(self, call: str, what: str, *args: object) -> Any:
        return await self.workers.quick(ability(self.hypervisor, call, what), *args)


def domain_of(guest: DomainSummary) -> Domain:
    """Return how the driver knows a live guest."""
    assert guest.domid is not None, "callers look at live guests"
    return Domain(domid=guest.domid, uuid=guest.uuid, name=guest.name)


def names_of(guest: DomainSummary) -> tuple[str, str]:
    """Return what a guest goes by: while it moves, that is its own name as well."""
    return guest.name, guest.config.name


def taken(name: str, other: DomainSummary) -> DomainExists:
    """Return the error that says who has the name."""
    where = "" if other.domid is None else f" as domain {other.domid}"
    return DomainExists(name, f"VM name '{name}' already exists{where}")


def _absolute(path: str) -> Path:
    if not path.startswith("/") or "\0" in path:
        raise HypervisorError(f"not an absolute path: {path!r}")
    return Path(path)
