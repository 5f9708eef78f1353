from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.control.fakes import FakeHypervisor, guest_config
from xendpy.control import rpc_server
from xendpy.control.rpc_server import RpcServer
from xendpy.control.xmlrpc import Dispatcher
from xendpy.errors import RelocationError
from xendpy.relocation.hosts import HostsAllow

MakeClient = Callable[[Path], xmlrpc.client.ServerProxy]


async def test_stock_client_is_served_over_one_connection(
    server: Path, client: MakeClient, hypervisor: FakeHypervisor
) -> None:
    hypervisor.add(guest_config("web1"))

    def talk() -> None:
        proxy = client(server)
        assert proxy.xend.domains(False) == ["Domain-0", "web1"]
        assert proxy.xend.domain.pause("web1") is None
        with pytest.raises(xmlrpc.client.Fault) as caught:
            proxy.xend.domain.destroy("nobody")
        assert (caught.value.faultCode, caught.value.faultString) == (3, "nobody")
        assert "xend.domain.migrate" in proxy.system.listMethods()

    await asyncio.to_thread(talk)


async def test_socket_lies_in_a_private_directory(server: Path) -> None:
    assert stat.S_IMODE(server.parent.stat().st_mode) == 0o700
    assert server.is_socket()


async def test_leaving_removes_the_socket(dispatcher: Dispatcher, tmp_path: Path) -> None:
    path = tmp_path / "run" / "xmlrpc.sock"
    async with RpcServer(dispatcher) as server:
        await server.listen_unix(path)
    assert not path.exists()


async def test_socket_of_a_dead_daemon_is_replaced(dispatcher: Dispatcher, tmp_path: Path) -> None:
    path = tmp_path / "run" / "xmlrpc.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with RpcServer(dispatcher) as server:
        await server.listen_unix(path)
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.close()


async def test_socket_of_a_living_daemon_is_not(server: Path, dispatcher: Dispatcher) -> None:
    async with RpcServer(dispatcher) as second:
        with pytest.raises(RelocationError, match="in use"):
            await second.listen_unix(server)
    assert server.is_socket()


async def test_other_users_are_refused(
    server: Path, monkeypatch: pytest.MonkeyPatch, hypervisor: FakeHypervisor
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr("xendpy.control.rpc_server._ROOT", 54321)
    reader, writer = await asyncio.open_unix_connection(str(server))
    async with asyncio.timeout(80):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    ("pattern", "admitted"),
    [("^127\\.0\\.0\\.1$", True), ("^peer\\.example$", True), ("^10\\.", False)],
)
async def test_tcp_is_behind_hosts_allow(
    pattern: str, admitted: bool, dispatcher: Dispatcher
) -> None:
    async with RpcServer(dispatcher, resolve=lambda address: "peer.example") as server:
        port = await server.listen_tcp("127.0.0.1", 0, HostsAllow.parse(pattern))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = xmlrpc.client.dumps((), "xend.node.info").encode()
        writer.write(b"POST /RPC2 HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(80):
            try:
                answer = await reader.read()
            except ConnectionResetError:  # closed with our request unread
                answer = b""
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 OK") is admitted


def ask(port: int, *, source: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> bytes:
    """Return what is answered to a question, nothing if the connection is closed instead."""
    body = xmlrpc.client.dumps((), "xend.node.info").encode()
    with socket.create_connection(("127.0.0.1", port), 80, source_address=(source, 0)) as sock:
        try:
            talk = tls.wrap_socket(sock) if tls else sock
            with talk:
                talk.sendall(
                    b"POST /RPC2 HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
                return talk.recv(15)
        except OSError:
            return b""


SERVED = b"HTTP/1.1 200 OK"


async def test_whoever_comes_over_tcp_takes_nothing_from_the_unix_socket(
    dispatcher: Dispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: MakeClient
) -> None:
    monkeypatch.setattr(rpc_server, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(rpc_server, "MAX_PER_PEER", 1)
    path = tmp_path / "run" / "xmlrpc.sock"
    async with RpcServer(dispatcher) as server:
        await server.listen_unix(path)
        port = await server.listen_tcp("127.0.0.1", 0, HostsAllow.parse(""))
        idle = []
        for place in (1, 2):
            local = (f"127.0.0.{place}", 0)
            idle.append(await asyncio.open_connection("127.0.0.1", port, local_addr=local))
            assert await asyncio.to_thread(ask, port) == b""  # that peer has its one
        assert await asyncio.to_thread(ask, port, source="127.0.0.3") == b""
        assert await asyncio.to_thread(lambda: client(path).xend.domains(False)) == ["Domain-0"]
        for _, writer in idle:
            writer.close()


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server and of its client."""
    authority = Authority(tmp_path)
    authority.issue("a.example")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(
        authority.pki.certificate_file("a.example"), authority.pki.key_file("a.example")
    )
    return server, authority.client()


async def test_a_handshake_counts_before_it_is_done(
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    monkeypatch.setattr(rpc_server, "MAX_CONNECTIONS", 1)
    ours, theirs = tls
    async with RpcServer(dispatcher) as server:
        port = await server.listen_tcp("127.0.0.1", 0, HostsAllow.parse(""), ours)
        with socket.create_connection(("127.0.0.1", port), 80):  # and shakes no hand
            assert await asyncio.to_thread(ask, port, tls=theirs) == b""
        async with asyncio.timeout(80):
            while await asyncio.to_thread(ask, port, tls=theirs) != SERVED:
                pass  # until the server has heard that it has gone


async def test_a_stranger_is_turned_away_before_the_handshake(
    dispatcher: Dispatcher, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async with RpcServer(dispatcher, resolve=str) as server:
        port = await server.listen_tcp("127.0.0.1", 0, HostsAllow.parse("^10\\."), tls[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(80):
            assert await reader.read() == b""
        writer.close()


async def test_drain_ends_idle_connections_and_lets_calls_finish(tmp_path: Path) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        entered.set()
        await go_on.wait()
        return "done"

    path = tmp_path / "run" / "s"
    async with RpcServer(Dispatcher({"slow": slow})) as server:
        await server.listen_unix(path)
        idle_reader, idle_writer = await asyncio.open_unix_connection(str(path))
        reader, writer = await asyncio.open_unix_connection(str(path))
        body = xmlrpc.client.dumps((), "slow").encode()
        writer.write(b"POST /RPC2 HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(80):
            await entered.wait()
            draining = asyncio.create_task(server.drain(20))
            assert await idle_reader.read() == b""
            go_on.set()
            assert b"done" in await reader.read()
            await draining
        idle_writer.close()
        writer.close()


async def test_deadline_of_a_drain_cuts_calls(tmp_path: Path) -> None:
    entered = asyncio.Event()
    cut: list[bool] = []

    async def endless() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cut.append(True)
            raise

    path = tmp_path / "run" / "s"
    async with RpcServer(Dispatcher({"endless": endless})) as server:
        await server.listen_unix(path)
        _, writer = await asyncio.open_unix_connection(str(path))
        body = xmlrpc.client.dumps((), "endless").encode()
        writer.write(b"POST /RPC2 HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(80):
            await entered.wait()
            await server.drain(0)
        writer.close()
    assert cut == [True]
