"""Wall clocks that are put forward and back while guests come in and while one is in doubt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.guests import guest, send_guest, span
from tests.peers.proxy import CUT, DOWN, Fault, Proxy
from tests.peers.relocation_host import Host, read_all, receiving
from tests.peers.service_host import DEADLINE_S, pair_configs, pair_of_services
from tests.streams import config, entries, envelope, pv_image
from xendpy.control.migrate_options import MigrateOptions
from xendpy.control.migrator import MigrateRequest
from xendpy.control.ownership import Ownership
from xendpy.control.workers import Workers
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.journal import Journal
from xendpy.migration.progress import MigrationState
from xendpy.paths import Paths

TEN_YEARS_S = 10 * 365.25 * 86400
PLACES = ("time.time", "xendpy.hypervisor.store.time", "xendpy.hypervisor.store_restore.time")
REAL = time.time


class Clock:
    """The wall clock; monotonic time goes on as ever."""

    offset_s = 0.0

    def __call__(self) -> float:
        return REAL() + self.offset_s


@pytest.fixture
def clock() -> Iterator[Clock]:
    made = Clock()
    with ExitStack() as stack:
        for place in PLACES:
            stack.enter_context(patch(place, made))
        yield made


def wire(name: str, number: int) -> bytes:
    rounds = [entries(range(64)), entries(range(9), 1), entries([3], 2)]
    image = pv_image(rounds, batch_pages=8)
    return envelope(config(name, uuid=f"00000000-0000-4000-8000-{number:012}")) + image.wire


@pytest.mark.parametrize("jump_s", [TEN_YEARS_S, -TEN_YEARS_S], ids=["forward", "back"])
async def test_a_guest_comes_in_while_the_clock_jumps(
    tmp_path: Path, clock: Clock, jump_s: float
) -> None:
    data = wire("web1", 1)
    async with receiving(tmp_path) as host:
        with await asyncio.to_thread(host.connect) as sock:
            await asyncio.to_thread(sock.sendall, b"receive\n" + data[:100000])
            incoming = await host.begun()
            while incoming.channel.offset < 50000:  # bounded by the test's own timeout
                await asyncio.sleep(0)
            clock.offset_s = jump_s
            await asyncio.to_thread(sock.sendall, data[100000:])
            await asyncio.to_thread(sock.shutdown, 1)
            assert await asyncio.to_thread(read_all, sock) == b"(ready receive)\n(ok)\n"
        ended = await host.ended()
        assert ended.progress.state is MigrationState.DONE
        assert 0 <= ended.progress.elapsed_s < DEADLINE_S
        assert host.store.unpaused == ["web1"]
    store = StoreHypervisor(Paths(tmp_path))  # a start that finds a guest of the future or past
    assert [found.name for found in store.domains()] == ["web1"]
    store.close()


@pytest.mark.parametrize("jump_s", [TEN_YEARS_S, -TEN_YEARS_S], ids=["forward", "back"])
async def test_a_guest_in_doubt_is_settled_whatever_the_clock_says(
    tmp_path: Path, clock: Clock, jump_s: float
) -> None:
    async with receiving(tmp_path, eof_timeout_s=0.05) as host:
        for number, name in enumerate(("web1", "web2"), 1):
            await _left_open(host, wire(name, number), number)
            clock.offset_s += jump_s
        # As a daemon finds them that starts after the jump.
        journal = Journal(Paths(tmp_path).state_dir / "migrations", Durable(), clock)
        first, second = journal.open_entries()
        assert (first.name, second.name) == ("web1", "web2")
        assert first.in_doubt and second.in_doubt
        workers = Workers()
        ownership = Ownership(host.store, journal, workers)
        await ownership.settle(first, "keep")
        await ownership.settle(second, "discard")
        workers.close()
        assert [found.name for found in host.store.domains()] == ["web1"]
        assert host.store.unpaused == ["web1"]
        assert journal.open_entries() == []


async def _left_open(host: Host, data: bytes, number: int) -> None:
    """Send a guest, and leave it open whether the sender has let go of it."""
    with await asyncio.to_thread(host.connect) as sock:
        await asyncio.to_thread(sock.sendall, b"receive\n" + data)
        await host.ended(number)


@pytest.mark.parametrize("jump_s", [TEN_YEARS_S, -TEN_YEARS_S], ids=["forward", "back"])
async def test_two_hosts_settle_a_hand_over_whatever_the_clock_says(
    tmp_path: Path, clock: Clock, jump_s: float
) -> None:
    store = StoreHypervisor(Paths(tmp_path / "a"))
    with store.restore(guest()) as session:
        send_guest(session, span(0, 64))
        session.complete()
    store.close()
    configs = pair_configs()
    port = int(configs["b"].split("(xend-relocation-port ")[1].split(")")[0])
    proxy = Proxy(("127.0.0.1", port))
    configs["a"] = configs["a"].replace(f"(port {port})", f"(port {proxy.port})")
    # Behind `received`: the source releases its guest, and nobody hears of it.
    proxy.arm(Fault(CUT, DOWN, unit=4))
    try:
        async with pair_of_services(tmp_path, configs) as (here, there):
            transfers = here.service.parts.transfers
            request = MigrateRequest(destination="b")
            await transfers.start("web01", request, MigrateOptions())
            async with asyncio.timeout(DEADLINE_S):
                while not proxy.hurt.is_set():
                    await asyncio.sleep(0)
                clock.offset_s = jump_s
                while transfers.open_entries() or there.service.parts.transfers.open_entries():
                    await asyncio.sleep(0.02)
            owners = [
                host.paths.root.name
                for host in (here, there)
                if host.service.parts.guests.hypervisor.domains()
            ]
            assert len(owners) == 1
    finally:
        proxy.close()
