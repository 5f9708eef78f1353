"""Rows about the daemon: listing guests, starting, and the memory it takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xmlrpc.client import dumps, loads

from tests.bench import sender
from tests.bench.harness import Bench, Row, at_most, timed
from tests.bytes_source import BytesSource
from tests.peers.hosts import Host, host_port
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.receive import NoGuest, drive
from xendpy.paths import Paths
from xendpy.stream.xend import decode_body, read_envelope

GUESTS = 1000
GUEST_MIB = 4
DAEMON_MIB, MIGRATION_MIB = 24, 8
IMPORTS = "import uvloop, xendpy.cli.xend, xendpy.control.service"


def run(bench: Bench) -> None:
    """Measure all rows."""
    _list_row(bench)
    _start_row(bench)
    _memory_row(bench)


@contextmanager
def daemon(bench: Bench, name: str) -> Iterator[Host]:
    """A daemon that has not been started, whose state is on tmpfs; stopped and gone at the end."""
    root = bench.memory_directory / name
    host = Host("et-virt07", root, "127.0.0.1", host_port())
    host.configure()
    try:
        yield host
    finally:
        host.stop()
        shutil.rmtree(root)


def _list_row(bench: Bench) -> None:
    work = f"xm list, {GUESTS} guests"
    virsh = f"virsh list --all, {GUESTS} guests"
    if not bench.wants(work) and not bench.wants(virsh):
        return
    with daemon(bench, "list") as host:
        file = host.root / "etc/xen/xend-config.sxp"
        file.write_text(file.read_text().replace("(xendpy-libvirt-server no)\n", ""))
        _store_guests(host.root)
        host.start()
        arguments = (True, "all", 0)
        reply = host.call("xend.domains_with_state", *arguments)

        def theirs() -> None:
            loads(dumps((reply,), methodresponse=True, allow_none=True))

        bench.compare(
            work,
            "xmlrpc dumps + loads of the reply",
            at_most(3),
            lambda: timed(lambda: host.call("xend.domains_with_state", *arguments)),
            lambda: timed(theirs),
        )
        if shutil.which("virsh"):
            bench.compare(
                virsh,
                "a second",
                at_most(1),
                lambda: timed(lambda: _virsh_list(host)),
                lambda: 1.0,
            )


def _virsh_list(host: Host) -> None:
    uri = f"xen+unix:///system?socket={host.root}/run/libvirt/virtxend-sock"
    done = subprocess.run(
        ["virsh", "-c", uri, "list", "--all"], check=True, capture_output=True, text=True
    )
    assert done.stdout.count("guest") == GUESTS


def _store_guests(root: Path) -> None:
    body = b"".join([sender.opening(GUEST_MIB), sender.closing()])
    hypervisor = StoreHypervisor(Paths(root))
    try:
        for number in range(GUESTS):
            source = BytesSource(body)
            envelope = drive(read_envelope(), source, NoGuest())
            text = envelope.config_bytes.replace(b"(name bench)", b"(name guest%d)" % number)
            config = DomainConfig.parse(text.replace(sender.UUID, str(uuid.uuid4()).encode()))
            with hypervisor.restore(config) as session:
                drive(decode_body(GuestType.PV), source, session)
                session.complete()
    finally:
        hypervisor.close()


def _start_row(bench: Bench) -> None:
    work = "xend start, until it listens"
    if not bench.wants(work):
        return

    def theirs() -> None:
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)

    with daemon(bench, "start") as host:

        def ours() -> float:
            try:
                return timed(host.start)
            finally:
                host.stop()

        bench.compare(work, "the same imports", at_most(1.5), ours, lambda: timed(theirs))


def _memory_row(bench: Bench) -> None:
    """Receive guests of two sizes, one after the other, and read the daemon's peak after each."""
    sizes = (bench.mib(64), bench.mib(1024))
    works = {mib: f"peak RSS of the daemon, guest of {mib} MiB" for mib in sizes}
    if not any(map(bench.wants, works.values())):
        return
    code = f"{IMPORTS}; print(open('/proc/self/status').read())"
    alone = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    imports_mib = _peak_mib(alone.stdout.decode())
    with daemon(bench, "memory") as host:
        host.start()
        for mib, work in works.items():
            _relocate(host, mib)
            host.call("xend.domain.destroy", "bench")
            pid = (host.root / "var/run/xend.pid").read_text()
            peak = _peak_mib(Path(f"/proc/{pid}/status").read_text())
            room = DAEMON_MIB + MIGRATION_MIB
            row = Row(work=work, against="imports + 32 MiB", bar=at_most(1), unit="MiB")
            row.ours, row.theirs = [peak], [imports_mib + room]
            bench.add(row)


def _relocate(host: Host, mib: int) -> None:
    """Send a guest as an old xend does."""
    argv = [sys.executable, "-m", "tests.bench.sender", str(host.port), str(mib), "contiguous"]
    subprocess.run([*argv, "xend"], check=True, timeout=120)


def _peak_mib(status: str) -> float:
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM in a process's status")
