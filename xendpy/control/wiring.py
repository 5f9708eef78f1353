"""What the daemon's parts take from the configuration: one function for each part."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

from xendpy.config import XendConfig
from xendpy.errors import ConfigError
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.base import Hypervisor
from xendpy.hypervisor.open import open_hypervisor
from xendpy.hypervisor.testguest import TestGuestRunner
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.migration.journal import Journal
from xendpy.migration.preflight import Check, Facts, Status, check_target
from xendpy.migration.reception import ReceiveLimits
from xendpy.paths import Paths
from xendpy.relocation import incoming, resolve, stripes
from xendpy.relocation.from_xend import RECEIVE, SSLRECEIVE, ReceiveFromXend
from xendpy.relocation.from_xendpy import JoinStreams, Landings, ReceiveFromXendpy, Resolve
from xendpy.relocation.hosts import HostsAllow
from xendpy.relocation.operation import Operation
from xendpy.relocation.settings import RelocationSettings
from xendpy.relocation.tls import named_file


def driver(config: XendConfig, paths: Paths) -> Hypervisor:
    """Open the driver that the configuration names.

    Raises:
        HypervisorUnavailable: it cannot be used here, or another daemon uses its state.
    """
    host_name = config.host_name or os.uname().nodename
    runner = TestGuestRunner(paths.run_dir, host_name=host_name)
    rules = GuestRules.of(config)
    return open_hypervisor(config.hypervisor, paths, runner=runner, rules=rules)


def relocation_settings(config: XendConfig, paths: Paths) -> RelocationSettings:
    """Return what the relocation server is to do.

    Raises:
        ConfigError: hosts-allow cannot be used.
    """
    return RelocationSettings.of(config, paths)


def hosts_allow(config: XendConfig, paths: Paths) -> HostsAllow:
    """Return the rules for peers; see relocation.hosts."""
    return HostsAllow.parse(config.relocation_hosts_allow, path=str(paths.config_file))


def operations(
    config: XendConfig,
    hypervisor: Hypervisor,
    journal: Journal,
    landings: Landings,
    host_id: str,
    at_home: Callable[[str], None],
) -> Mapping[str, Operation]:
    """Return what a peer of the relocation port can ask for, by name.

    `at_home` is given the configuration of a guest that is to be managed here.
    """

    limits = ReceiveLimits.of(config)

    def preflight(guest: DomainConfig, facts: Facts, local: bool) -> list[Check]:
        allowed = limits.guests.check(guest)
        if allowed.status is Status.FAILED:
            return [allowed]  # nothing of this host is told of a guest that it does not want
        checks = check_target(
            guest,
            facts,
            hypervisor,
            local=local,
            devices=hypervisor.name != "store",
            max_memory_mib=config.max_guest_memory,
        )
        return [allowed, *checks]

    return {
        RECEIVE: ReceiveFromXend.of(config, hypervisor, journal, at_home),
        SSLRECEIVE: ReceiveFromXend.of(config, hypervisor, journal, at_home, SSLRECEIVE),
        incoming.OPERATION: ReceiveFromXendpy(
            hypervisor=hypervisor,
            journal=journal,
            host_id=host_id,
            landings=landings,
            preflight=preflight,
            release_timeout_s=config.verdict_timeout_s,
            limits=limits,
        ),
        stripes.OPERATION: JoinStreams(landings=landings),
        resolve.OPERATION: Resolve(
            hypervisor=hypervisor, journal=journal, host_id=host_id, landings=landings
        ),
    }


def certificates(config: XendConfig, paths: Paths) -> list[Path]:
    """Return the certificate files that the TLS relocation port lives by."""
    names = (config.relocation_ssl_cert, config.relocation_tls_ca)
    return [named_file(name, paths) for name in names if name]


def rpc_tls(config: XendConfig, paths: Paths) -> ssl.SSLContext | None:
    """Return the TLS context of XML-RPC over TCP; None unless key and certificate are given.

    Raises:
        ConfigError: only one of them is, or they cannot be used.
    """
    key, certificate = config.tcp_xmlrpc_ssl_key, config.tcp_xmlrpc_ssl_cert
    if not key and not certificate:
        return None
    option = "xend-tcp-xmlrpc-server-ssl-key-file"
    if not key or not certificate:
        raise ConfigError("key and certificate must both be given", option=option)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(named_file(certificate, paths), named_file(key, paths), "")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be used: {error}", option=option) from error
    return context
