"""What becomes of a guest that has ended by itself: on_poweroff, on_reboot and on_crash.

Source: XendDomainInfo.py, Xen 4.4: _maybeRestart, _restart, _renameRestart, _preserve. The driver
tells of the end; nothing is asked for at intervals.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass

from xendpy.control.abilities import ability
from xendpy.control.events import EventKind
from xendpy.control.guests import Guests
from xendpy.errors import DomainError, Unsupported, XendError
from xendpy.guest.domain import Domain, DomainSummary

MINIMUM_RESTART_S = 60.0  # xend: sooner after the last restart, a guest is not started again

# By the reason of the end: the key of the configuration, and what it is where it is not set.
ACTIONS = {
    "poweroff": ("on_poweroff", "destroy"),
    "reboot": ("on_reboot", "restart"),
    "crash": ("on_crash", "restart"),
}
# There are no core dumps here: what would follow one is done.
SAME_AS = {"coredump-destroy": "destroy", "coredump-restart": "restart"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _End:
    domain: Domain
    reason: str


class Lifecycle:
    """Acts on the ends that the driver tells of; used in the loop's thread."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests
        self._ends: asyncio.Queue[_End] = asyncio.Queue()
        self._restarted_s: dict[str, float] = {}

    async def run_for_ever(self) -> None:
        """Obey every guest's configuration when it ends, one guest after the other."""
        loop = asyncio.get_running_loop()

        def ended(domain: Domain, reason: str) -> None:
            loop.call_soon_threadsafe(self._ends.put_nowait, _End(domain, reason))

        try:
            ability(self._guests.hypervisor, "watch_ends", "tell when guests end")(ended)
        except Unsupported:
            return
        async with asyncio.TaskGroup() as group:
            while True:
                end = await self._ends.get()
                group.create_task(self._act(end))

    async def _act(self, end: _End) -> None:
        domain = end.domain
        try:
            # A save or a migration of it comes to its own end first.
            await self._guests.operations.idle(domain.uuid)
            live = await self._guests.live()
            guest = next((found for found in live if found.domid == domain.domid), None)
            if guest is not None:
                await self._obey(guest, end.reason)
        except XendError as error:
            log.error("domain %s, ended by %s: %s", domain.name, end.reason, error)

    async def _obey(self, guest: DomainSummary, reason: str) -> None:
        detail = "crashed" if reason == "crash" else "shutdown"
        log.info("domain %s (%s) has ended: %s", guest.name, guest.domid, reason)
        self._guests.events.emit(EventKind.STOPPED, guest, detail)
        action = self._action(guest, reason)
        again = action in ("restart", "rename-restart")
        if again:
            self._guests.restarting[guest.uuid] = guest.name
        try:
            await self._end(guest, reason, action)
            if again:
                await self._restart(guest)
        finally:
            self._guests.restarting.pop(guest.uuid, None)

    async def _end(self, guest: DomainSummary, reason: str, action: str) -> None:
        with self._guests.operations.begin(guest.uuid, guest.name, f"after its {reason}"):
            if action == "rename-restart":
                await self._set_aside(guest)
            elif action != "preserve":
                await self._guests.workers.quick(self._guests.hypervisor.destroy, named(guest))

    def _action(self, guest: DomainSummary, reason: str) -> str:
        doubt = self._doubt(guest)
        if doubt:
            log.warning("domain %s is left as it is: %s", guest.name, doubt)
            return "preserve"
        key, default = ACTIONS[reason]
        action = guest.config.text(key) or default
        action = SAME_AS.get(action, action)
        since_s = time.monotonic() - self._restarted_s.get(guest.uuid, -MINIMUM_RESTART_S)
        if "restart" in action and since_s < MINIMUM_RESTART_S:
            log.error(
                "VM %s restarting too fast (Elapsed time: %f seconds). Refusing to restart to"
                " avoid loops.",
                guest.name, since_s,
            )  # fmt: skip
            return "destroy"
        return action

    def _doubt(self, guest: DomainSummary) -> str:
        """Say why another host may own the guest, empty if none may: it must not run here then."""
        try:
            if self._guests.owner is not None:
                self._guests.owner.refuse_in_doubt(guest.uuid, guest.name, "restart")
        except DomainError as error:
            return str(error)
        return guest.note

    async def _set_aside(self, guest: DomainSummary) -> None:
        """Leave an ended guest to be looked into, under another name and uuid."""
        taken = {found.name for found in await self._guests.guests()}
        names = (f"{guest.name}-{number}" for number in range(1, len(taken) + 2))
        name = next(name for name in names if name not in taken)
        set_aside = ability(self._guests.hypervisor, "set_aside", "keep an ended guest")
        await self._guests.workers.quick(set_aside, named(guest), name, str(uuid.uuid4()))
        log.info("domain %s (%s) is kept as %s", guest.name, guest.domid, name)

    async def _restart(self, guest: DomainSummary) -> None:
        self._restarted_s[guest.uuid] = time.monotonic()
        started = await self._guests.create(guest.config)
        await self._guests.unpause(guest.uuid)
        self._guests.restarts[guest.uuid] += 1
        log.info("domain %s is restarted as %s", guest.name, started.domid)


def named(guest: DomainSummary) -> Domain:
    """Return what names a live guest in a call of the driver."""
    assert guest.domid is not None
    return Domain(domid=guest.domid, uuid=guest.uuid, name=guest.name)
