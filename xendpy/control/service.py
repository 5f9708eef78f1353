"""The daemon as a whole: configuration, driver, servers, signals, and how it ends.

SIGHUP reads the configuration again, all of it or nothing. SIGTERM and SIGINT drain: nothing new
is taken, what is being handed over is finished, the rest is cut without harm; a second one cuts
everything. SIGUSR1 writes what goes on to the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import uvloop

from xendpy import __version__
from xendpy.config import XendConfig
from xendpy.config_file import LoadedConfig, load
from xendpy.control import autostart, logs, wiring
from xendpy.control.dialling import Dialler
from xendpy.control.domain_methods import DomainMethods
from xendpy.control.events import Event, EventKind
from xendpy.control.guests import Guests
from xendpy.control.libvirt.server import LibvirtServer
from xendpy.control.libvirt.session import Host as LibvirtHost
from xendpy.control.lifecycle import Lifecycle
from xendpy.control.managed import ManagedDomains
from xendpy.control.metrics import Metrics, MetricsServer
from xendpy.control.migrations import Migration, Migrations, Way, audit_migration, succeeded
from xendpy.control.node import Host
from xendpy.control.node_methods import NodeMethods
from xendpy.control.notify import Notifier, forget
from xendpy.control.rpc_server import RpcServer
from xendpy.control.transfer_methods import TransferMethods
from xendpy.control.transfers import Transfers
from xendpy.control.workers import Workers
from xendpy.control.xmlrpc import Dispatcher
from xendpy.errors import ConfigError, XendError
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

FOREVER_S = 1e8  # three years
EXTENSION_S = 30.0  # what systemd is asked for at a time while draining
STATUS_EVERY_S = 10.0
STOP_STATUS_EVERY_S = 2.0  # somebody waits for it
CUT = "cut"  # of xendpy-stop-while-moving
RPC_DRAIN_S = 30.0  # for saves and restores under way

log = logging.getLogger(__name__)


def run(paths: Paths, *, foreground: bool, ready: Callable[[], None]) -> int:
    """Be the daemon until a signal ends it; return the exit code.

    `ready` is called once, when every listener is open.

    Raises:
        ConfigError: the configuration cannot be used.
        XendError: a listener or the driver cannot be opened.
    """
    loaded = load(paths.config_file)
    log_file = set_up_logs(paths, loaded, foreground=foreground)
    notifier = Notifier.from_environ()
    forget()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        service = Service(paths, loaded, notifier=notifier, log_file=log_file)
        try:
            return runner.run(service.serve(ready))
        except (XendError, OSError) as error:
            log.error("xend ends: %s", error)
            raise


def set_up_logs(paths: Paths, loaded: LoadedConfig, *, foreground: bool) -> str:
    """Open the log and write down what was odd about the configuration; return the file's name."""
    config = loaded.config
    level = "DEBUG" if os.environ.get("XEND_DEBUG") else config.loglevel
    file = logs.set_up(paths.below(config.logfile), level, console=foreground)
    for warning in loaded.warnings:
        log.warning("%s", warning.told(loaded.path))
    return str(file)


class Service:
    """One run of the daemon; `serve` once."""

    def __init__(
        self, paths: Paths, loaded: LoadedConfig, *, notifier: Notifier, log_file: str
    ) -> None:
        self._paths = paths
        self._config = loaded.config
        self._notifier = notifier
        self._log_file = log_file
        self._stopping = asyncio.Event()
        self._stops = 0
        self._tasks: asyncio.TaskGroup | None = None

    async def serve(self, ready: Callable[[], None]) -> int:
        """Open everything, be ready, serve until told to stop, drain; return the exit code."""
        log.info("Xend Daemon started")
        log.info("xendpy %s, root %s", __version__, self._paths.root)
        with self._workers() as workers, self._driver() as hypervisor:
            self._assemble(hypervisor, workers)
            await workers.quick(self.guests.managed.load)
            await self.transfers.ownership.recover()
            try:
                async with asyncio.TaskGroup() as self._tasks:
                    await self._serve(ready)
            except BaseExceptionGroup as group:
                raise _first(group) from None
        log.info("Xend Daemon stopped")
        return 0

    def _assemble(self, hypervisor: Hypervisor, workers: Workers) -> None:
        config, paths = self._config, self._paths
        managed = ManagedDomains(paths.below(config.domains_path))
        self.guests = Guests(hypervisor, managed, workers, Host())
        self.migrations = Migrations(self._show_status)
        self.migrations.on_end(self._migration_ended)
        self._journal = Journal(paths.state_dir / "migrations", Durable(), time.time)
        self._journal.on_owned(lambda entry: self._at_home(entry.home))
        self._landings = Landings()
        host_id = hypervisor.host_id
        dialler = Dialler(host_id, lambda: self._config, paths)
        self.transfers = Transfers(self.guests, self._journal, self.migrations, dialler)
        self.guests.migrator = self.transfers
        self.guests.owner = self.transfers.ownership
        node = NodeMethods(self.guests, self.migrations, self._log_file)
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
                relocation=lambda: wiring.relocation_settings(self._config, self._paths),
                host_name=lambda: self._config.host_name or os.uname().nodename,
                max_guest_memory_mib=lambda: self._config.max_guest_memory,
            )
        )
        self.relocation = RelocationServer(
            wiring.relocation_settings(config, paths),
            self._operations(config),
            events=self.migrations,
            audit=Audit(self.metrics.refused),
        )

    def _name_of(self, address: str) -> str:
        confirm = self._config.relocation_forward_confirm
        return confirmed_name(address) if confirm else full_name(address)

    def _operations(self, config: XendConfig) -> Mapping[str, Operation]:
        hypervisor = self.guests.hypervisor
        return wiring.operations(
            config,
            hypervisor,
            self._journal,
            self._landings,
            hypervisor.host_id,
            self._at_home,
        )

    async def _serve(self, ready: Callable[[], None]) -> None:
        served = MetricsServer(self._config.metrics_address, self.metrics)
        async with self.relocation, self.rpc, self.libvirt, served:
            await self._listen_rpc()
            with self._signals():
                log.info("driver %s, ready", self.guests.hypervisor.name)
                ready()
                self._notifier.ready(self.migrations.summary())
                background = [
                    self._begin(lambda: autostart.start_all(self.guests, self._paths)),
                    self._begin(self._keep_alive),
                    self._begin(self.transfers.resolver.run),
                    self._begin(Lifecycle(self.guests).run_for_ever),
                ]
                await self._stopping.wait()
                for task in background:
                    task.cancel()
                await self._drain()

    async def _listen_rpc(self) -> None:
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

    async def _drain(self) -> None:
        """Finish what must be finished; the service manager is told to have patience."""
        deadline_s = self._config.drain_timeout_s or FOREVER_S
        arrive = self._config.stop_while_moving != CUT
        log.info("stopping: %s", self.migrations.summary())
        self._notifier.stopping(self._status())
        patience = self._begin(self._ask_for_time)
        await asyncio.gather(
            self.transfers.drain(deadline_s if arrive else 0),
            self.relocation.drain(deadline_s, arrive=arrive),
        )
        await autostart.stop_all(self.guests)
        await self.rpc.drain(min(deadline_s, RPC_DRAIN_S))
        patience.cancel()

    async def _ask_for_time(self) -> None:
        while True:
            self._notifier.extend_timeout(EXTENSION_S)
            self._show_status()
            await asyncio.sleep(STOP_STATUS_EVERY_S)

    async def _keep_alive(self) -> None:
        """Show the loop to be alive, and how the migrations stand, as long as it turns."""
        interval_s = min(self._notifier.watchdog_interval_s or STATUS_EVERY_S, STATUS_EVERY_S)
        while True:
            await asyncio.sleep(interval_s)
            self._notifier.alive()
            if self.migrations.running():
                self._show_status()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGHUP: self._on_hangup,
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGUSR1: self._dump,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Begin to drain; called again, cut what still goes on."""
        self._stops += 1
        self._stopping.set()
        if self._stops > 1:
            log.warning("told to stop again: cutting what still goes on")
            self._begin(lambda: self.transfers.drain(0))
            self._begin(lambda: self.relocation.drain(0))
            self._begin(lambda: self.rpc.drain(0))

    def _on_hangup(self) -> None:
        if not self._stopping.is_set():
            self._begin(self.reload)

    async def reload(self) -> None:
        """Apply the configuration file as it is now, or keep the old one as a whole."""
        self._notifier.reloading()
        workers = self.guests.workers
        try:
            loaded = await workers.quick(load, self._paths.config_file)
            settings = wiring.relocation_settings(loaded.config, self._paths)
            operations = await workers.quick(self._operations, loaded.config)
        except ConfigError as error:
            log.error("the configuration is not reloaded: %s", error)
            self._notifier.ready(f"configuration not reloaded: {error}")
            return
        self._config = loaded.config
        self.relocation.update(settings, operations)
        self.rpc.hosts_allow = settings.hosts_allow
        logging.getLogger().setLevel(logs.level_of(loaded.config.loglevel))
        for warning in loaded.warnings:
            log.warning("%s", warning.told(loaded.path))
        log.info("configuration reloaded")
        self._notifier.ready(self.migrations.summary())

    def _begin(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Begin a task of the daemon's own; what goes wrong in it ends nothing else.

        `work` is called in the task: one that is cancelled before its first step does nothing.
        """
        assert self._tasks is not None
        return self._tasks.create_task(_guarded(work))

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

    def _show_status(self) -> None:
        self._notifier.status(self._status())

    def _status(self) -> str:
        return ("draining: " if self._stopping.is_set() else "") + self.migrations.summary()

    def _dump(self) -> None:
        """Write migrations, operations and every task's stack to the log."""
        log.info("migrations: %s", self.migrations.summary())
        for operation in self.guests.operations.all():
            log.info("domain %s is %s", operation.name, operation.what)
        for task in asyncio.all_tasks():
            frames = [(frame, frame.f_lineno) for frame in task.get_stack()]
            stack = "".join(traceback.StackSummary.extract(iter(frames)).format())
            log.info("task %s:\n%s", task.get_name(), stack.rstrip())

    @contextmanager
    def _workers(self) -> Iterator[Workers]:
        workers = Workers()
        try:
            yield workers
        finally:
            workers.close()

    @contextmanager
    def _driver(self) -> Iterator[Hypervisor]:
        hypervisor = wiring.driver(self._config, self._paths)
        try:
            yield hypervisor
        finally:
            hypervisor.close()


async def _guarded(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except Exception:
        log.exception("a task of the daemon failed")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended the daemon, without the groups around it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
