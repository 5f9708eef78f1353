"""Test guests: the one kind of guest that the embedded store can run.

What libvirt's test driver is to libvirt. `kernel = "xendpy:ticker"` makes one: a process whose
memory is a memfd that it holds, so that the guest lives on when the daemon does not. It logs the
host's name and the date, and dirties its memory as `extra` tells it (testguest_layout.py). Only
another embedded store can take it over: nothing in its memory could boot on a real hypervisor.

A memfd does not outlive the host, and no more does a guest's memory under Xen.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from xendpy import sxp
from xendpy.errors import HypervisorError, OutOfMemory, XendError
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.guest.memoryfile import MemoryFile
from xendpy.guest.pages import PAGE_SHIFT, Types
from xendpy.hypervisor import testguest_layout as layout
from xendpy.hypervisor import testguest_link as link
from xendpy.hypervisor import testguest_records
from xendpy.hypervisor.testguest_arriving import ArrivingGuest
from xendpy.hypervisor.testguest_process import WAITING
from xendpy.hypervisor.testguest_running import TestGuest, encode_kept
from xendpy.stream.records import Record

log = logging.getLogger(__name__)

KERNEL = "xendpy:ticker"
PAGES_PER_MIB = 256


def is_test_guest(config: DomainConfig) -> bool:
    """Return whether `config` is that of a test guest, which only an embedded store can take."""
    return bool(sxp.child_value(config.image(), "kernel") == KERNEL)


class TestGuestRunner:
    """Runs test guests, with sockets in `run_dir`; hypervisor.runner.GuestRunner.

    `host_name` is what guests that start here write into their logs. `launcher` goes before the
    command of each process; None chooses by how this daemon was started.
    """

    __test__ = False

    def __init__(
        self, run_dir: Path, *, host_name: str, launcher: Sequence[str] | None = None
    ) -> None:
        self._dir = run_dir / "testguest"
        self._host_name = host_name
        self._launcher = link.default_launcher() if launcher is None else tuple(launcher)

    def can_run(self, config: DomainConfig) -> bool:
        """Return whether `config` is that of a test guest."""
        return is_test_guest(config)

    def create(self, config: DomainConfig, *, domid: int) -> TestGuest:
        """Build a new guest, paused.

        Raises:
            OutOfMemory: this host has not that much memory left.
            HypervisorError: the config asks for the impossible, or the process did not come up.
        """
        _require_config(config, "create")
        extra = sxp.child_value(config.image(), "args")
        words = extra if isinstance(extra, str) else ""
        try:
            layout.TickerOptions.parse(words)
        except ValueError as error:
            raise HypervisorError(f"extra: {error}", operation="create") from error
        nr_pages = config.memory_mib * PAGES_PER_MIB
        _require_memory(nr_pages)
        arguments = [f"--vcpus={config.vcpus}", f"--extra={words}"]
        return TestGuest(self._start(config, domid, nr_pages, arguments))

    def start_from(
        self,
        memory: MemoryFile,
        types: Types,
        records: Iterable[Record],
        config: DomainConfig,
        *,
        domid: int,
    ) -> TestGuest:
        """Build a guest, paused, from an image at rest, which is copied.

        Raises:
            OutOfMemory: this host has not that much memory left.
            HypervisorError: the image is not that of a test guest, or not of one moment.
        """
        arriving = self.receive(config, domid=domid)
        try:
            arriving.load(memory)
            return arriving.start(types, records)
        except BaseException:
            arriving.discard()
            raise

    def receive(self, config: DomainConfig, *, domid: int) -> ArrivingGuest:
        """Return room for a guest that comes in, with a process that waits for it.

        Takes a fifth of a second, so that `start` takes milliseconds.

        Raises:
            OutOfMemory: this host has not that much memory left.
            HypervisorError: no such guest can run, or the process did not come up.
        """
        _require_config(config, "start")
        _require_memory(config.memory_mib * PAGES_PER_MIB)
        return ArrivingGuest(self._start(config, domid, 0, ["--waiting"]))

    def adopt(self) -> Sequence[TestGuest]:
        """Return the guests that an earlier daemon started; call once.

        Raises:
            HypervisorError: one of them does not answer. To go on without it could double it.
        """
        guests = []
        for path in sorted(self._dir.glob("*.sock")):
            connection = link.connect(path)
            if connection is None:
                log.warning("%s: its process is gone", path.name)
                link.forget(path)
                continue
            if connection.state == WAITING:
                connection.end()
                continue
            try:
                guests.append(TestGuest(connection))
            except (XendError, ValueError, KeyError) as error:
                text = f"{path.name}: process {connection.pid} is no guest of ours: {error}"
                raise HypervisorError(text, operation="adopt") from error
        return guests

    def _start(
        self, config: DomainConfig, domid: int, nr_pages: int, arguments: Sequence[str]
    ) -> link.GuestLink:
        """Start a process that holds empty memory of `nr_pages`."""
        ram = _memfd("xendpy-ram", nr_pages << PAGE_SHIFT)
        dirty = _memfd("xendpy-dirty", nr_pages)
        kept = link.sealed(encode_kept(config, domid, time.time(), ""))
        fds = (ram, dirty, kept)
        # Two guests of one uuid are here at once while one migrates to its own host.
        path = self._dir / f"{config.uuid}.{domid}.sock"
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            host_name = f"--host-name={self._host_name}"
            return link.start(path, fds, [host_name, *arguments], self._launcher)
        finally:
            for fd in fds:
                os.close(fd)


def _require_config(config: DomainConfig, operation: str) -> None:
    if config.guest_type is not GuestType.PV:
        raise HypervisorError("a test guest is para-virtualized", operation=operation)
    if config.vcpus > testguest_records.MAX_VCPUS:
        raise HypervisorError(
            f"a test guest has at most {testguest_records.MAX_VCPUS} vcpus, not {config.vcpus}",
            operation=operation,
        )


def _require_memory(nr_pages: int) -> None:
    wanted = nr_pages << PAGE_SHIFT
    with open("/proc/meminfo") as file:
        values = dict(line.split(":") for line in file)
    free = int(values["MemAvailable"].split()[0]) << 10
    if wanted > free:
        raise OutOfMemory(
            f"{wanted >> 20} MiB wanted, {free >> 20} MiB are free",
            wanted_bytes=wanted,
            free_bytes=free,
            operation="create",
        )


def _memfd(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd
