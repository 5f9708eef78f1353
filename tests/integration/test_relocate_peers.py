"""Peers of all kinds at the relocation port: slow, silent, too many, not admitted, in a drain."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.peers.relocating import HELP, READY, err, pv_guest, sent
from tests.peers.relocation_host import Host, converse, read_all, receiving
from tests.streams import config, envelope, pv_image
from xendpy.migration.progress import MigrationState
from xendpy.relocation.hosts import HostsAllow
from xendpy.relocation.operation import Incoming


async def test_slow_peer_is_served(tmp_path: Path) -> None:
    wire = envelope(config()) + pv_image(p2m_size=8).wire
    async with receiving(tmp_path, stall_timeout_s=5) as host:

        def trickle() -> bytes:
            with host.connect() as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.sendall(b"receive\n")
                answer = sock.recv(80)
                for start in range(0, len(wire), 97):
                    sock.sendall(wire[start : start + 97])
                sock.shutdown(socket.SHUT_WR)
                return answer + read_all(sock)

        assert await asyncio.to_thread(trickle) == READY + b"(ok)\n"


async def test_silent_sender_is_given_up(tmp_path: Path) -> None:
    async with receiving(tmp_path, stall_timeout_s=0.1) as host:
        with await asyncio.to_thread(host.connect) as sock:
            await asyncio.to_thread(sock.sendall, b"receive\nLinuxGuest")
            answer = await asyncio.to_thread(read_all, sock)
    assert answer == READY + err(b"timed out after 0.1 s while receiving (peer refused)").replace(
        b"refused", answer.rpartition(b"peer ")[2].partition(b")")[0]
    )


async def test_idle_connection_is_closed(tmp_path: Path) -> None:
    async with receiving(tmp_path, control_timeout_s=0.1) as host:
        with await asyncio.to_thread(host.connect) as sock:
            assert await asyncio.to_thread(sock.recv, 1) == b""


async def test_flood_is_bounded_and_passes(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_connections=10, max_connections_per_peer=10) as host:

        def flood() -> int:
            socks = [host.connect() for _ in range(60)]
            answered = 0
            for sock in socks:
                try:
                    sock.sendall(b"help\n")
                    answered += sock.recv(80) == HELP
                except OSError:
                    pass
            for sock in socks:
                sock.close()
            return answered

        assert await asyncio.to_thread(flood) == 10
        assert await asyncio.to_thread(_until_answered, host)


def _until_answered(host: Host) -> bool:
    # The server notices the flood's end peer by peer.
    for _ in range(1000):
        try:
            with host.connect() as sock:
                sock.sendall(b"help\n")
                if sock.recv(80) == HELP:
                    return True
        except OSError:
            pass
    return False


async def test_one_peer_cannot_take_all_connections(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_connections=100, max_connections_per_peer=3) as host:
        socks = [await asyncio.to_thread(host.connect) for _ in range(4)]
        assert await asyncio.to_thread(socks[3].recv, 1) == b""
        await asyncio.to_thread(socks[0].sendall, b"help\n")
        assert await asyncio.to_thread(socks[0].recv, 80) == HELP
        for sock in socks:
            sock.close()


async def test_denied_peer_gets_no_byte(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = r"^10\.0\.0\.5$ ^host\.example$"
    async with receiving(tmp_path, hosts_allow=rules, resolve=lambda _: "evil.example") as host:
        with await asyncio.to_thread(host.connect) as sock:
            assert await asyncio.to_thread(read_all, sock) == b""
    assert "Rejected connection from 127.0.0.1 (evil.example)" in caplog.text
    assert rules in caplog.text


@pytest.mark.parametrize("rules", [r"^127\.0\.0\.1$", r"^no$ ^friend\.example$"])
async def test_admitted_peer_is_logged_with_its_rule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rules: str
) -> None:
    caplog.set_level("INFO")
    async with receiving(tmp_path, hosts_allow=rules, resolve=lambda _: "friend.example") as host:
        report = await sent(host, pv_guest())
        await host.ended()
    assert report.succeeded
    assert f"rule={rules.split()[-1]}" in caplog.text


async def test_hanging_name_server_stalls_nobody_else(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(address: str) -> str:
        release.wait(120)
        return "late.example"

    rules = r"^127\.0\.0\.2$ ^late"
    try:
        async with receiving(
            tmp_path, hosts_allow=rules, resolve=hang, dns_timeout_s=0.3, address=""
        ) as host:
            waiting = [await asyncio.to_thread(host.connect) for _ in range(20)]

            def known() -> bytes:
                with socket.create_connection(
                    host.address, timeout=80, source_address=("127.0.0.2", 0)
                ) as sock:
                    sock.sendall(b"help\n")
                    return sock.recv(80)

            assert await asyncio.to_thread(known) == HELP
            assert await asyncio.to_thread(waiting[0].recv, 1) == b""
            for sock in waiting:
                sock.close()
    finally:
        release.set()


async def test_full_house_is_told_with_numbers_and_help_is_answered(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_incoming=1) as host:
        with await asyncio.to_thread(host.connect) as first:
            await asyncio.to_thread(first.sendall, b"receive\n")
            await host.begun()
            got = await asyncio.to_thread(
                converse,
                host.address,
                b"help\nreceive\n" + pv_guest(),
                half_close=False,
                wait_s=20,
            )
    assert got == HELP + err(b"1 migrations are coming in, at most 1 are taken")


async def test_update_applies_to_new_connections(tmp_path: Path) -> None:
    async with receiving(tmp_path) as host:
        with await asyncio.to_thread(host.connect) as old:
            await asyncio.to_thread(old.sendall, b"help\n")
            assert await asyncio.to_thread(old.recv, 80) == HELP
            server = host.server
            server.update(
                replace(server._settings, hosts_allow=HostsAllow.parse("^nobody$")),
                server._operations,
            )
            with await asyncio.to_thread(host.connect) as new:
                assert await asyncio.to_thread(new.recv, 1) == b""
            await asyncio.to_thread(old.sendall, b"help\n")
            assert await asyncio.to_thread(old.recv, 80) == HELP


async def test_drain_aborts_what_is_under_way(tmp_path: Path) -> None:
    wire = pv_guest()
    async with receiving(tmp_path) as host:
        with await asyncio.to_thread(host.connect) as sock:
            await asyncio.to_thread(sock.sendall, b"receive\n" + wire[:40000])
            incoming = await host.begun()
            port = host.server.port
            await asyncio.wait_for(host.server.drain(None), 20)
            assert incoming.progress.state is MigrationState.ABORTED
            assert not host.store.domains()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)


async def _until_ending(host: Host, sock: socket.socket, wire: bytes) -> Incoming:
    await asyncio.to_thread(sock.sendall, b"receive\n" + wire)
    incoming = await host.begun()
    while not incoming.ending:  # bounded by the test's own timeout
        await asyncio.sleep(0)
    return incoming


async def test_drain_lets_a_hand_over_finish(tmp_path: Path) -> None:
    wire = pv_guest()
    async with receiving(tmp_path) as host:
        with await asyncio.to_thread(host.connect) as sock:
            await _until_ending(host, sock, wire[:-100])
            draining = asyncio.create_task(host.server.drain(20))
            await asyncio.sleep(0)
            assert not draining.done()
            await asyncio.to_thread(sock.sendall, wire[-100:])
            await asyncio.to_thread(sock.shutdown, socket.SHUT_WR)
            await asyncio.wait_for(draining, 80)
        assert [guest.name for guest in host.store.domains()] == ["web1"]


async def test_second_drain_cuts_a_hand_over_and_keeps_what_came(tmp_path: Path) -> None:
    async with receiving(tmp_path) as host:
        with await asyncio.to_thread(host.connect) as sock:
            incoming = await _until_ending(host, sock, pv_guest()[:-100])
            draining = asyncio.create_task(host.server.drain(None))
            await asyncio.sleep(0)
            await asyncio.wait_for(host.server.drain(None), 20)
            await asyncio.wait_for(draining, 80)
            assert incoming.progress.state is MigrationState.ABORTED
            assert len(host.store.partials()) == 1


async def test_local_socket_speaks_the_same(tmp_path: Path) -> None:
    path = tmp_path / "state" / "relocation-socket"
    async with receiving(tmp_path, listens=False, unix_path=path, hosts_allow="^nobody$"):
        assert path.parent.stat().st_mode & 0o777 == 0o700

        def peer() -> bytes:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(80)
                sock.connect(str(path))
                sock.sendall(b"receive\n" + pv_guest())
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        assert await asyncio.to_thread(peer) == READY + b"(ok)\n"
    assert not path.exists()
