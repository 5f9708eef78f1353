"""What many migrations leave behind: nothing.

make soak    SOAK_SECONDS=N       no migration begins after so many seconds
             SOAK_MIGRATIONS=N    live ones, to and fro between two hosts
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Barrier

import pytest

from tests.peers.hosts import Host, host_port, pair, serving, until
from tests.streams import Image, config, entries, envelope, pv_image
from xendpy.control.workers import QUICK_THREADS
from xendpy.guest.pages import PAGE_SIZE
from xendpy.hypervisor import testguest_link
from xendpy.migration.journal import HISTORY

SECONDS = float(os.environ.get("SOAK_SECONDS", "3600"))
MIGRATIONS = int(os.environ.get("SOAK_MIGRATIONS", "1000"))
WARM_UP = 50  # migrations in each direction after which nothing may grow any more
DEADLINE_S = 1800.0
RSS_MIB = 8  # what the allocator may still find to keep
AT_A_TIME = 64
PAGES = 256  # of each of them
GUEST = "testvm1"
# A machine that is busy with other things is slow, and that breaks no connection here.
PATIENT = "(xendpy-stall-timeout 900) (xendpy-verdict-timeout 900)\n"


@dataclass(frozen=True, slots=True)
class Held:
    """What one daemon holds of the machine."""

    rss_mib: float
    fds: int
    threads: int
    files: int

    @classmethod
    def of(cls, host: Host) -> Held:
        pid = int((host.root / "var/run/xend.pid").read_text())
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        return cls(
            rss_mib=int(status["VmRSS"].split()[0]) / 1024,
            fds=len(os.listdir(f"/proc/{pid}/fd")),
            threads=int(status["Threads"]),
            files=sum(path.is_file() for path in host.root.rglob("*")),
        )


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_nothing_grows_over_a_thousand_live_migrations(tmp_path, capsys):
    began_s = time.monotonic()
    with pair(tmp_path, more=PATIENT) as hosts:
        source, target = hosts
        source.create(GUEST, memory=16, extra="tick=0.1 dirty=2MB/s wss=4MB")
        done, warm = 0, [Held.of(host) for host in hosts]
        # The guest ends where it began: its host holds more than the other.
        while done % 2 or (done < MIGRATIONS and time.monotonic() - began_s < SECONDS):
            move(source, target)
            source, target = target, source
            done += 1
            if done == 2 * WARM_UP:
                warm = [Held.of(host) for host in hosts]
            if done % WARM_UP == 0:
                with capsys.disabled():
                    print(f"{done} in {time.monotonic() - began_s:.0f} s:", flush=True)
                    for host in hosts:
                        print(f"  {host.name} {asdict(Held.of(host))}", flush=True)
        held = [Held.of(host) for host in hosts]
        check_ticks(source)
    with capsys.disabled():
        print(f"{done} live migrations in {time.monotonic() - began_s:.0f} s: {warm} -> {held}")
    if done > 2 * WARM_UP:
        for before, after in zip(warm, held, strict=True):
            assert after.rss_mib <= before.rss_mib + RSS_MIB
            assert after.fds <= before.fds
            # A pool starts a thread where calls coincide, up to its bound.
            assert after.threads <= before.threads + QUICK_THREADS
            assert after.files <= before.files + HISTORY  # what the journal remembers


def move(source: Host, target: Host) -> None:
    """Migrate the guest, live, and have it look at every page of its memory."""
    request = {"destination": target.name, "live": True}
    migration = source.call("xendpy.migrate", GUEST, request, {})
    until(
        lambda: source.call("xendpy.migration", migration)["ended"],
        "the migration to end",
        timeout_s=DEADLINE_S,
    )
    view = source.call("xendpy.migration", migration)
    assert view["state"] == "done", view["reason"]
    assert (source.guests(), target.guests()) == ([], [GUEST])
    check_memory(target)


def check_memory(host: Host) -> None:
    (path,) = (host.root / "var/run/xend/testguest").glob("*.sock")
    guest = testguest_link.connect(path)
    assert guest is not None, "the guest has no process"
    try:
        assert guest.command("check")["faults"] == []
    finally:
        guest.close()


def check_ticks(host: Host) -> None:
    numbers = [int(line.rsplit("#", 1)[1]) for line in host.console(GUEST)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@contextmanager
def one_host(place: Path) -> Iterator[Host]:
    """Run a host that takes as many guests at a time as the test sends."""
    host = Host("et-virt07", place / "et-virt07", "127.0.0.1", host_port())
    host.configure(more=f"(xendpy-max-incoming {AT_A_TIME})\n")
    with serving(host):
        yield host


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_guests_come_in_at_a_time(tmp_path, capsys):
    names = [f"web{number}" for number in range(AT_A_TIME)]
    with one_host(tmp_path) as host, ThreadPoolExecutor(AT_A_TIME) as threads:
        at_a_time: list[int] = []
        together = Barrier(AT_A_TIME, lambda: at_a_time.append(len(running(host))), DEADLINE_S)
        payloads = [payload(number) for number in range(AT_A_TIME)]
        began_s = time.monotonic()
        work = [threads.submit(send, host, data, together) for data in payloads]
        assert [task.result() for task in work] == ["(ok)\n"] * AT_A_TIME
        until(lambda: not running(host), "the last guest to be taken over", timeout_s=DEADLINE_S)
        took_s = time.monotonic() - began_s
        assert at_a_time == [AT_A_TIME]
        assert sorted(host.guests()) == sorted(names)
        for number in range(AT_A_TIME):
            compare(host, number)
        held = Held.of(host)
    with capsys.disabled():
        print(f"{AT_A_TIME} guests at a time in {took_s:.1f} s, then {held}")


def send(host: Host, data: bytes, together: Barrier) -> str:
    """Send half a guest, wait until all others have come as far, and send the rest."""
    half = len(data) // 2
    with socket.create_connection((host.address, host.port), timeout=DEADLINE_S) as sock:
        sock.sendall(b"receive\n")
        assert sock.recv(80) == b"(ready receive)\n"
        sock.sendall(data[:half])
        together.wait()
        sock.sendall(data[half:])
        sock.shutdown(socket.SHUT_WR)
        return sock.recv(80).decode()


def image(number: int) -> Image:
    """Return a guest's memory, unlike any other's, sent as a live migration."""
    rounds = [entries(range(PAGES), number), entries(range(0, PAGES, 3), number + AT_A_TIME)]
    return pv_image([*rounds, entries([1], number)], p2m_size=PAGES)


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def payload(number: int) -> bytes:
    guest = config(f"web{number}", uuid=uuid(number), memory=PAGES * PAGE_SIZE >> 20)
    return envelope(guest) + image(number).wire


def running(host: Host) -> list[str]:
    ended = ("done", "failed", "aborted")
    rows = host.call("xendpy.migrations")
    return [row["domain"] for row in rows if row["state"] not in ended]


def compare(host: Host, number: int) -> None:
    """Compare every page with what was sent."""
    (file,) = (host.root / "var/lib/xend/store").glob(f"**/{uuid(number)}*/memory")
    arrived = file.read_bytes()
    for pfn, page in image(number).memory.items():
        assert arrived[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE] == page, (number, pfn)
