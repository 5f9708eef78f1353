"""The seam between the service calls and whoever can send a guest to another host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from xendpy.guest.domain import DomainSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateRequest:
    """What a client asks for; `tls` None = as configured, `port` 0 = the configured one.

    `name`: what the guest is called from then on, '' = as before.
    """

    destination: str
    live: bool = False
    port: int = 0
    node: int = -1
    tls: bool | None = None
    change_home_server: bool = False
    name: str = ""


class Migrator(Protocol):
    """Whoever can send a guest away; returns when it is gone, raises when it stays."""

    async def migrate(self, guest: DomainSummary, request: MigrateRequest) -> None: ...
