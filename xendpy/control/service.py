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
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import uvloop

from xendpy import __version__
from xendpy.config_file import LoadedConfig, load
from xendpy.control import autostart, logs, wiring
from xendpy.control.lifecycle import Lifecycle
from xendpy.control.metrics import MetricsServer
from xendpy.control.notify import Notifier, forget
from xendpy.control.parts import Parts
from xendpy.control.workers import Workers
from xendpy.errors import ConfigError, XendError
from xendpy.hypervisor.base import Hypervisor
from xendpy.paths import Paths

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
        boot_id = autostart.this_boot()
        service = Service(paths, loaded, notifier=notifier, log_file=log_file, boot_id=boot_id)
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
        self,
        paths: Paths,
        loaded: LoadedConfig,
        *,
        notifier: Notifier,
        log_file: str,
        boot_id: str,
    ) -> None:
        self._paths = paths
        self._loaded = loaded
        self._notifier = notifier
        self._log_file = log_file
        self._boot_id = boot_id
        self._stopping = asyncio.Event()
        self._stops = 0
        self._tasks: asyncio.TaskGroup | None = None

    async def serve(self, ready: Callable[[], None]) -> int:
        """Open everything, be ready, serve until told to stop, drain; return the exit code."""
        log.info("Xend Daemon started")
        log.info("xendpy %s, root %s", __version__, self._paths.root)
        with self._workers() as workers, self._driver() as hypervisor:
            self.parts = Parts(
                self._loaded.config,
                self._paths,
                hypervisor,
                workers,
                log_file=self._log_file,
                changed=self._show_status,
            )
            await workers.quick(self.parts.guests.managed.load)
            await self.parts.transfers.ownership.recover()
            try:
                async with asyncio.TaskGroup() as self._tasks:
                    await self._serve(ready)
            except BaseExceptionGroup as group:
                raise _first(group) from None
        log.info("Xend Daemon stopped")
        return 0

    async def _serve(self, ready: Callable[[], None]) -> None:
        parts = self.parts
        served = MetricsServer(parts.config.metrics_address, parts.metrics)
        async with parts.relocation, parts.rpc, parts.libvirt, served:
            await parts.listen_rpc()
            with self._signals():
                log.info("driver %s, ready", parts.guests.hypervisor.name)
                ready()
                self._notifier.ready(parts.migrations.summary())
                background = [
                    self._begin(self._start_guests),
                    self._begin(self._keep_alive),
                    self._begin(parts.transfers.resolver.run),
                    self._begin(Lifecycle(parts.guests).run_for_ever),
                ]
                await self._stopping.wait()
                for task in background:
                    task.cancel()
                await self._drain()

    async def _start_guests(self) -> None:
        await autostart.start_all(self.parts.guests, self._paths, self._boot_id)

    async def _drain(self) -> None:
        """Finish what must be finished; the service manager is told to have patience."""
        parts, config = self.parts, self.parts.config
        deadline_s = config.drain_timeout_s or FOREVER_S
        arrive = config.stop_while_moving != CUT
        log.info("stopping: %s", parts.migrations.summary())
        self._notifier.stopping(self._status())
        patience = self._begin(self._ask_for_time)
        await asyncio.gather(
            parts.transfers.drain(deadline_s if arrive else 0),
            parts.relocation.drain(deadline_s, arrive=arrive),
        )
        await autostart.stop_all(parts.guests)
        await parts.rpc.drain(min(deadline_s, RPC_DRAIN_S))
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
            if self.parts.migrations.running():
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
            self._begin(lambda: self.parts.transfers.drain(0))
            self._begin(lambda: self.parts.relocation.drain(0))
            self._begin(lambda: self.parts.rpc.drain(0))

    def _on_hangup(self) -> None:
        if not self._stopping.is_set():
            self._begin(self.reload)

    async def reload(self) -> None:
        """Apply the configuration file as it is now, or keep the old one as a whole."""
        self._notifier.reloading()
        workers = self.parts.guests.workers
        try:
            loaded = await workers.quick(load, self._paths.config_file)
            operations = await workers.quick(self.parts.operations, loaded.config)
            self.parts.reconfigure(loaded.config, operations)
        except ConfigError as error:
            log.error("the configuration is not reloaded: %s", error)
            self._notifier.ready(f"configuration not reloaded: {error}")
            return
        logging.getLogger().setLevel(logs.level_of(loaded.config.loglevel))
        for warning in loaded.warnings:
            log.warning("%s", warning.told(loaded.path))
        log.info("configuration reloaded")
        self._notifier.ready(self.parts.migrations.summary())

    def _begin(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Begin a task of the daemon's own; what goes wrong in it ends nothing else.

        `work` is called in the task: one that is cancelled before its first step does nothing.
        """
        assert self._tasks is not None
        return self._tasks.create_task(_guarded(work))

    def _show_status(self) -> None:
        self._notifier.status(self._status())

    def _status(self) -> str:
        return ("draining: " if self._stopping.is_set() else "") + self.parts.migrations.summary()

    def _dump(self) -> None:
        """Write migrations, operations and every task's stack to the log."""
        log.info("migrations: %s", self.parts.migrations.summary())
        for operation in self.parts.guests.operations.all():
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
        hypervisor = wiring.driver(self._loaded.config, self._paths)
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
