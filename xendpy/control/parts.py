"""What the daemon consists of, and how its parts know each other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from xendpy.config import XendConfig
from xendpy.control import wiring
from xendpy.control.dialling import Dialler
from xendpy.control.domain_methods import DomainMethods
from xendpy.control.events import Event, EventKind
from xendpy.control.guests import Guests
from xendpy.control.libvirt.server import LibvirtServer
from xendpy.control.libvirt.session import Host as LibvirtHost
from xendpy.control.managed import ManagedDomains
from xendpy.control.metrics import Metrics
from xendpy.control.migrations import Migration, Migrations, Way, audit_migration, succeeded
from xendpy.control.new_config import Defaults
from xendpy.control.node import Host
from xendpy.control.node_methods import NodeMethods
from xendpy.control.rpc_server import RpcServer
from xendpy.control.transfer_methods import TransferMethods
from xendpy.control.transfers import Transfers
from xendpy.control.workers import Workers
from xendpy.control.xmlrpc import Dispatcher
from xendpy.hypervisor.base import Hypervisor
from xendpy.hypervisor.durable import Durable
from xendpy.migration.home import settle
from xendpy.migration.journal import Journal
from xendpy.paths import Paths
from xendpy.relocation.admission import confirmed_name, full_name
from xendpy.relocation.audit import Audit
from xendpy.relocation.from_xendpy import Landings
from xendpy.relocation.operation import Operation
from xendpy.relocation.server import RelocationServer


class Parts:
    """The parts of one daemon, made once; nothing listens before `listen_rpc` and `relocation`.

    `changed` is called in the event loop when a migration begins, moves on or ends. The driver
    and the workers stay the caller's.
    """

    def __init__(
        self,
        config: XendConfig,
        paths: Paths,
        hypervisor: Hypervisor,
        workers: Workers,
        *,
        log_file: str,
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._paths = paths
        managed = ManagedDomains(paths.below(config.domains_path))
        self.guests = Guests(hypervisor, managed, workers, Host())
        self.guests.defaults = Defaults.of(config)
        self.migrations = Migrations(changed)
        self.migrations.on_end(self._migration_ended)
        self._journal = Journal(paths.state_dir / "migrations", Durable(), time.time)
        self._journal.on_owned(lambda entry: self._at_home(entry.home))
        self._landings = Landings()
        dialler = Dialler(hypervisor.host_id, lambda: self._config, paths)
        self.transfers = Transfers(self.guests, self._journal, self.migrations, dialler)
        self.guests.migrator = self.transfers
        self.guests.owner = self.transfers.ownership
        node = NodeMethods(self.guests, self.migrations, log_file)
        moves = TransferMethods(self.guests, self.migrations, self.transfers)
        methods = {**DomainMethods(self.guests).table(), **node.table(), **moves.table()}
        self.rpc = RpcServer(Dispatcher(methods), resolve=self._name_of)
        self.metrics = Metrics(
            running=self.migrations.running,
            in_doubt=lambda: sum(entry.in_doubt for entry in self.transfers.open_entries()),
            certificates=lambda: wiring.certificates(self._config, paths),
        )
        self.migrations.on_end(self.metrics.ended)
        self.migrations.on_end(audit_migration)
        self.libvirt = LibvirtServer(
            LibvirtHost(
                guests=self.guests,
                transfers=self.transfers,
                migrations=self.migrations,
                relocation=lambda: wiring.relocation_settings(self._config, paths),
                host_name=lambda: self._config.host_name or os.uname().nodename,
                max_guest_memory_mib=lambda: self._config.max_guest_memory,
            ),
            resolve=self._name_of,
        )
        self.relocation = RelocationServer(
            wiring.relocation_settings(config, paths),
            self.operations(config),
            events=self.migrations,
            audit=Audit(self.metrics.refused),
        )

    @property
    def config(self) -> XendConfig:
        """The configuration that counts now."""
        return self._config

    def reconfigure(self, config: XendConfig, operations: Mapping[str, Operation]) -> None:
        """Have another configuration count from here on, with its `operations`.

        Raises:
            ConfigError: it cannot be used; the old one counts.
        """
        settings = wiring.relocation_settings(config, self._paths)
        self._config = config
        self.guests.defaults = Defaults.of(config)
        self.relocation.update(settings, operations)
        self.rpc.hosts_allow = settings.hosts_allow
        self.libvirt.hosts_allow = settings.hosts_allow

    def operations(self, config: XendConfig) -> Mapping[str, Operation]:
        """Return what peers may ask for at the relocation port; may look things up on disk.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        hypervisor = self.guests.hypervisor
        return wiring.operations(
            config,
            hypervisor,
            self._journal,
            self._landings,
            hypervisor.host_id,
            self._at_home,
        )

    async def listen_rpc(self) -> None:
        """Open what xm and virsh connect to.

        Raises:
            XendError: a listener cannot be opened.
        """
        config, paths = self._config, self._paths
        if config.unix_xmlrpc_server:
            await self.rpc.listen_unix(paths.xmlrpc_socket)
        if config.tcp_xmlrpc_server:
            await self.rpc.listen_tcp(
                config.tcp_xmlrpc_address,
                config.tcp_xmlrpc_port,
                wiring.hosts_allow(config, paths),
                wiring.rpc_tls(config, paths),
            )
        if config.libvirt_server:
            await self.libvirt.listen_unix(paths.libvirt_dir)
        if config.libvirt_tcp_server:
            await self.libvirt.listen_tcp(
                config.libvirt_tcp_address,
                config.libvirt_tcp_port,
                wiring.hosts_allow(config, paths),
            )

    def _name_of(self, address: str) -> str:
        confirm = self._config.relocation_forward_confirm
        return confirmed_name(address) if confirm else full_name(address)

    def _at_home(self, home: str) -> None:
        settle(home, self.guests.managed.put)

    def _migration_ended(self, migration: Migration) -> None:
        if migration.way is not Way.IN or not succeeded(migration):
            return
        progress = migration.progress
        self.guests.events.tell(
            Event(
                kind=EventKind.STARTED,
                uuid=progress.uuid,
                name=progress.name,
                domid=None,
                detail="migrated",
            )
        )
