"""What the relocation server takes from the configuration, in its own units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xendpy.config import XendConfig
from xendpy.paths import Paths
from xendpy.relocation.hosts import HostsAllow
from xendpy.relocation.tls import TlsServer


@dataclass(frozen=True, slots=True, kw_only=True)
class RelocationSettings:
    """`listens`: the plain port is to be open; `unix_path`: the local socket, None for none.

    `tls`: the TLS port is to be open.
    """

    listens: bool
    address: str
    port: int
    hosts_allow: HostsAllow
    unix_path: Path | None = None
    tls: TlsServer | None = None
    forward_confirm: bool = False
    control_timeout_s: float = 30.0
    stall_timeout_s: float = 60.0
    dns_timeout_s: float = 5.0
    max_connections: int = 256
    max_connections_per_peer: int = 64
    max_incoming: int = 8

    @classmethod
    def of(cls, config: XendConfig, paths: Paths) -> RelocationSettings:
        """Return the settings of a configuration file.

        Raises:
            ConfigError: a hosts-allow pattern is empty or no regular expression, or TLS is on
                and a file for it cannot be used.
        """
        return cls(
            listens=config.relocation_server and not config.relocation_require_tls,
            address=config.relocation_address,
            port=config.relocation_port,
            hosts_allow=HostsAllow.parse(config.relocation_hosts_allow),
            unix_path=paths.relocation_socket if config.unix_server else None,
            tls=TlsServer.of(config, paths),
            forward_confirm=config.relocation_forward_confirm,
            control_timeout_s=config.control_timeout_s,
            stall_timeout_s=config.stall_timeout_s,
            dns_timeout_s=config.dns_timeout_s,
            max_connections=config.max_connections,
            max_connections_per_peer=config.max_connections_per_peer,
            max_incoming=config.max_incoming,
        )
