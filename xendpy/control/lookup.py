"""Which guests there are, and which one a client means by a name, an id or a uuid.

Source: XendDomain.domain_lookup_nr, Xen 4.4: name of a live guest, name of a managed one, id,
uuid of a live guest, uuid of a managed one. So a guest that is named "7" hides the one with id 7.
"""

from __future__ import annotations

import re

from xendpy.control.domain_sxp import STATUS_NAMES, Tree, status_of
from xendpy.control.managed import ManagedDomains, inactive
from xendpy.control.node import Host
from xendpy.control.workers import Workers
from xendpy.errors import DomainError, DomainNotFound
from xendpy.guest.domain import DomainConfig, DomainSummary
from xendpy.hypervisor.base import Capabilities, Hypervisor


class Lookup:
    """The host's guests as they are at this moment; nothing is remembered between calls."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        managed: ManagedDomains,
        workers: Workers,
        host: Host,
    ) -> None:
        self.hypervisor = hypervisor
        self.managed = managed
        self.workers = workers
        self.host = host

    async def guests(self, state: str = "all") -> list[DomainSummary]:
        """Return Domain-0, the live guests by id, then the managed ones that do not run.

        Raises:
            DomainError: `state` is neither "all" nor one of xend's names.
        """
        if state not in ("all", *STATUS_NAMES):
            raise DomainError("", f"Invalid state: {state}")
        live = await self.live()
        uuids = {guest.uuid for guest in live}
        resting = [inactive(item) for item in self.managed.all() if item.uuid not in uuids]
        return [
            guest for guest in live + resting if state in ("all", STATUS_NAMES[status_of(guest)])
        ]

    async def live(self) -> list[DomainSummary]:
        """Return Domain-0 and the live guests by id."""
        guests = await self.workers.quick(self.hypervisor.domains)
        return [await self.workers.quick(self.host.domain_0), *guests]

    async def get(self, reference: str | int) -> DomainSummary:
        """Return the guest that a name, an id or a uuid means, in xend's order.

        Raises:
            DomainNotFound: it means none.
        """
        text = str(reference)
        live = await self.live()
        for guest in live:
            if text in (guest.name, guest.config.name):  # one that moves has two names
                return guest
        named = self.managed.by_name(text)
        if named is not None:
            return _running_or_not(named, live)
        number = int(text) if re.fullmatch(r"\d{1,9}", text) else None
        for guest in live:
            if guest.domid == number or guest.uuid == text.lower():
                return guest
        config = self.managed.get(text.lower())
        if config is None:
            raise DomainNotFound(text)
        return inactive(config)

    async def capabilities(self) -> Capabilities:
        return await self.workers.quick(self.hypervisor.capabilities)

    async def node_info(self, *, numa: bool = True) -> list[Tree]:
        """Return what `xm info` shows, as `[[key, value], ...]`."""
        capabilities = await self.capabilities()
        return await self.workers.quick(self.host.info, capabilities, numa=numa)


def _running_or_not(config: DomainConfig, live: list[DomainSummary]) -> DomainSummary:
    """Return a managed domain as it is: it may run under another name."""
    return next((guest for guest in live if guest.uuid == config.uuid), inactive(config))
