"""The seam between the service calls and whoever can send a guest to another host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from xendpy.guest.domain import DomainSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateRequest:
    """What `xm migrate` asks for; `tls` None = as configured, `port` 0 = the configured one."""

    destination: str
    live: bool = False
    port: int = 0
    node: int = -1
    tls: bool | None = None
    change_home_server: bool = False


class Migrator(Protocol):
    """Whoever can send a guest away; returns when it is gone, raises when it stays."""

    async def migrate(self, guest: DomainSummary, request: MigrateRequest) -> None: ...
