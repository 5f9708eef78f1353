"""Two hosts send a guest of one uuid at once: one of them is refused, and one guest comes in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.guests import UUID, guest, send_guest, span
from tests.peers.proxy import STALL, UP, Fault, Proxy
from tests.peers.relocation_host import read_all
from tests.peers.service_host import DEADLINE_S, ServiceHost, pair_configs
from tests.peers.xend import Report, Sender
from tests.soak.records import BUFFER_BYTES, hasty
from tests.streams import config, entries, envelope, pv_image
from xendpy.control.migrate_options import MigrateOptions
from xendpy.control.migrator import MigrateRequest
from xendpy.errors import MigrationError
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.paths import Paths

NAME = "web01"
OTHER_UUID = "00000000-0000-4000-8000-000000000002"


def wire(name: str = NAME, uuid: str = UUID) -> bytes:
    """Return a guest that is larger than what the kernel holds."""
    return envelope(config(name, uuid=uuid)) + pv_image([entries(range(1024))], p2m_size=1024).wire


async def old(port: int, data: bytes) -> Report:
    sender = Sender(("127.0.0.1", port), buffer_bytes=BUFFER_BYTES)
    return await asyncio.to_thread(sender.migrate, data)


def begin(port: int, data: bytes) -> socket.socket:
    """Begin a migration as an old xend does."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    sock.sendall(b"receive\n" + data)
    return sock


def finish(sock: socket.socket, data: bytes) -> bytes:
    with sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


@pytest.mark.parametrize(
    "rival",
    [wire(), wire(uuid=OTHER_UUID), wire(name="another")],
    ids=["same", "same-name", "same-uuid"],
)
async def test_of_two_old_senders_the_second_is_refused(tmp_path: Path, rival: bytes) -> None:
    data = wire()
    async with hasty(tmp_path) as host:
        port = host.address[1]
        first = await asyncio.to_thread(begin, port, data[:500000])
        await host.begun()
        while not host.store.incoming():  # bounded by the test's own timeout
            await asyncio.sleep(0)
        report = await old(port, rival)
        assert report.guest_lives
        assert "on its way in" in report.shown or "exists" in report.shown, report.shown
        answer = await asyncio.to_thread(finish, first, data[500000:])
        assert answer == b"(ready receive)\n(ok)\n"
        await host.ended(2)
        assert host.store.unpaused == [NAME]
        late = await old(port, rival)  # and once it is there
        assert late.guest_lives
        assert len(host.store.domains()) == 1


def _port(text: str) -> int:
    return int(text.split("(xend-relocation-port ")[1].split(")")[0])


@asynccontextmanager
async def _senders(
    place: Path, names: str, proxy_for: str = ""
) -> AsyncIterator[tuple[dict[str, ServiceHost], Proxy | None]]:
    """Run host b, and hosts that each have a guest of one uuid; one of them behind a proxy."""
    made = pair_configs()
    port = _port(made["b"])
    proxy = Proxy(("127.0.0.1", port)) if proxy_for else None
    hosts: dict[str, ServiceHost] = {}
    try:
        async with ServiceHost(place / "b", f"(xendpy-stall-timeout 3) {made['b']}") as target:
            hosts["b"] = target
            for name in names:
                _store(place / name)
                text = pair_configs()["a"]
                peer = proxy.port if proxy and name == proxy_for else port
                text = text.partition("(xendpy-peer")[0] + (
                    "(xendpy-stall-timeout 3) (xendpy-verdict-timeout 3)"
                    f" (xendpy-peer b (address 127.0.0.1) (port {peer}))"
                )
                hosts[name] = await ServiceHost(place / name, text).__aenter__()
            try:
                yield hosts, proxy
            finally:
                for name in names:
                    await hosts[name].__aexit__()
    finally:
        if proxy is not None:
            proxy.close()


def _store(root: Path) -> None:
    store = StoreHypervisor(Paths(root))
    with store.restore(guest(NAME)) as session:
        send_guest(session, span(0, 512))
        session.complete()
    store.close()


def _has(host: ServiceHost) -> list[str]:
    return [found.name for found in host.service.parts.guests.hypervisor.domains()]


async def _send(host: ServiceHost) -> str:
    request = MigrateRequest(destination="b")
    return await host.service.parts.transfers.start(NAME, request, MigrateOptions())


async def test_behind_an_old_sender_a_xendpy_host_is_refused(tmp_path: Path) -> None:
    data = wire()
    async with _senders(tmp_path, "a") as (hosts, _):
        here, target = hosts["a"], hosts["b"]
        port = target.service.parts.relocation.port
        first = await asyncio.to_thread(begin, port, data[:500000])
        async with asyncio.timeout(DEADLINE_S):
            while not target.service.parts.guests.hypervisor.incoming():
                await asyncio.sleep(0.01)
        number = await _send(here)
        with pytest.raises(MigrationError, match=r"on its way in|exists"):
            await here.service.parts.transfers.outcome(number)
        assert _has(here) == [NAME]
        assert await asyncio.to_thread(finish, first, data[500000:]) == b"(ready receive)\n(ok)\n"
        assert _has(target) == [NAME]


@pytest.mark.parametrize("rival", ["old", "xendpy"])
async def test_behind_a_xendpy_host_another_sender_is_refused(tmp_path: Path, rival: str) -> None:
    async with _senders(tmp_path, "ac", proxy_for="a") as (hosts, proxy):
        here, target = hosts["a"], hosts["b"]
        assert proxy is not None
        proxy.arm(Fault(STALL, UP, offset=1 << 20))
        first = await _send(here)
        async with asyncio.timeout(DEADLINE_S):
            while not target.service.parts.guests.hypervisor.incoming():
                await asyncio.sleep(0.01)
        if rival == "old":
            report = await old(target.service.parts.relocation.port, wire())
            assert report.guest_lives
            assert "on its way in" in report.shown or "exists" in report.shown, report.shown
        else:
            second = await _send(hosts["c"])
            with pytest.raises(MigrationError, match=r"on its way in|exists"):
                await hosts["c"].service.parts.transfers.outcome(second)
            assert _has(hosts["c"]) == [NAME]
        with pytest.raises(MigrationError):  # the stalled one fails, and stays where it is
            await here.service.parts.transfers.outcome(first)
        async with asyncio.timeout(DEADLINE_S):
            while target.service.parts.guests.hypervisor.incoming():
                await asyncio.sleep(0.01)
        assert _has(here) == [NAME]
        assert _has(target) == []
