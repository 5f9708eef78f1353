"""Listening, admission, and the server's bookkeeping."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from tests.certificates import Authority, dial
from tests.peers.relocation_host import receiving
from xendpy.config import XendConfig
from xendpy.errors import RelocationError
from xendpy.migration.progress import MigrationState
from xendpy.paths import Paths
from xendpy.relocation import incoming as incoming_op
from xendpy.relocation import resolve, stripes
from xendpy.relocation.admission import LOG_EVERY_S, Counts, Muffler, Names, descriptor_limit
from xendpy.relocation.from_xend import told
from xendpy.relocation.hosts import HostsAllow
from xendpy.relocation.listen import interface_address, listen_tcp, listen_unix
from xendpy.relocation.operation import Incoming
from xendpy.relocation.server import RelocationServer
from xendpy.relocation.settings import RelocationSettings


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("lo", "127.0.0.1"),
        ("", None),
        ("127.0.0.1", None),
        ("::1", None),
        ("cafe", None),  # all hex digits: looks like an address to xend
        ("localhost", None),
        ("no-such-interface-anywhere", None),
    ],
)
def test_interface_names_are_resolved(name: str, address: str | None) -> None:
    assert interface_address(name) == address


@pytest.mark.parametrize(
    ("address", "bound"),
    [("", "0.0.0.0"), ("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("lo", "127.0.0.1")],
)
def test_listens_where_it_is_told(address: str, bound: str) -> None:
    with listen_tcp(address, 0) as sock:
        assert sock.getsockname()[0] == bound
        assert not os.get_inheritable(sock.fileno())
        assert not sock.getblocking()


def test_busy_port_is_a_clear_error() -> None:
    with listen_tcp("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(RelocationError) as caught:
            listen_tcp("127.0.0.1", port)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: address already in use: is another xend running?"
    )


@pytest.mark.parametrize("address", ["192.0.2.77", "no such host"])
def test_impossible_address_is_a_clear_error(address: str) -> None:
    with pytest.raises(RelocationError, match=f"cannot listen on {address}:0: "):
        listen_tcp(address, 0)


def test_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state" / "relocation-socket"
    listen_unix(path).close()
    assert path.exists()
    with listen_unix(path), socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_living_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "relocation-socket"
    with listen_unix(path):
        with pytest.raises(RelocationError, match="address already in use"):
            listen_unix(path)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))


def test_file_in_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "relocation-socket"
    path.write_text("precious")
    with pytest.raises(RelocationError, match="something else is there"):
        listen_unix(path)
    assert path.read_text() == "precious"


def test_counts_bound_all_and_each_peer() -> None:
    counts = Counts()
    assert [counts.enter("a", max_total=3, max_per_peer=2) for _ in range(2)] == ["", ""]
    assert "from one peer" in counts.enter("a", max_total=3, max_per_peer=2)
    assert counts.enter("b", max_total=3, max_per_peer=2) == ""
    assert "at most 3" in counts.enter("c", max_total=3, max_per_peer=2)
    counts.leave("a")
    assert counts.enter("c", max_total=3, max_per_peer=2) == ""
    assert counts.total == 3


def test_local_socket_is_not_one_peer() -> None:
    counts = Counts()
    assert [counts.enter("", max_total=9, max_per_peer=1) for _ in range(3)] == ["", "", ""]


def test_connections_leave_descriptors_for_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, limit in ((1024, 768), (300, 150), (resource.RLIM_INFINITY, 1 << 20)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert descriptor_limit() == limit


def test_muffler_counts_what_it_swallows() -> None:
    muffler = Muffler()
    assert [muffler.due(10.0), muffler.due(10.1), muffler.due(10.2)] == [0, None, None]
    assert muffler.due(10.0 + LOG_EVERY_S) == 2
    assert muffler.due(20.0) == 0


def test_one_address_has_one_look_up() -> None:
    go = threading.Event()
    asked: list[str] = []

    def resolve(address: str) -> str:
        asked.append(address)
        go.wait(40)
        return f"{address}.example"

    names = Names(resolve)
    try:
        first = names.look_up("a")
        assert names.look_up("a") is first
        other: Future[str] = names.look_up("b")
        go.set()
        assert (first.result(10), other.result(10)) == ("a.example", "b.example")
        assert names.look_up("a").result(10) == "a.example"
        assert sorted(asked) == ["a", "a", "b"]  # a finished one is not kept
    finally:
        go.set()
        names.close()


def test_addresses_whose_look_up_hangs_keep_nobody_from_a_name() -> None:
    go = threading.Event()

    def resolve(address: str) -> str:
        assert address == "good" or go.wait(60)
        return f"{address}.example"

    names = Names(resolve)
    try:
        for number in range(100):
            names.look_up(f"192.0.2.{number}")
        assert names.look_up("good").result(60) == "good.example"
    finally:
        go.set()
        names.close()


async def test_busy_port_keeps_the_server_from_starting(tmp_path: Path) -> None:
    with listen_tcp("127.0.0.1", 0) as sock, pytest.raises(RelocationError):
        async with receiving(tmp_path, port=sock.getsockname()[1]):
            pytest.fail("started on a port that is taken")


async def test_nothing_listens_when_nothing_is_asked_for(tmp_path: Path) -> None:
    async with receiving(tmp_path, listens=False) as host:
        assert host.server.port == 0


class Deaf:
    def began(self, incoming: Incoming) -> None: ...

    def ended(self, incoming: Incoming) -> None:
        self.incoming = incoming


async def test_fault_in_an_operation_ends_that_peer_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(incoming: Incoming) -> None:
        raise ValueError("a bug of ours")

    events = Deaf()
    settings = RelocationSettings(
        listens=True, address="127.0.0.1", port=0, hosts_allow=HostsAllow.parse("")
    )
    async with RelocationServer(settings, {"broken": broken}, events=events) as server:
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"broken\n")
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        assert events.incoming.progress.state is MigrationState.FAILED
    assert "a bug of ours" in caplog.text


async def test_a_tls_port_never_speaks_anything_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    authority.issue("a.example")
    config = authority.config(
        "a.example",
        relocation_server=True,
        relocation_address="127.0.0.1",
        relocation_port=0,
        relocation_hosts_allow="",
        relocation_tls_verify="none",
    )
    with_tls = RelocationSettings.of(config, authority.paths)
    async with RelocationServer(with_tls, {}, events=Deaf()) as server:
        server.update(replace(with_tls, tls=None), {})
        assert f"port {server.tls_port} takes nobody until the next start" in caplog.text
        reader, writer = await asyncio.open_connection("127.0.0.1", server.tls_port)
        assert await _said_to(reader, writer) == b""
        plain, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert (await _said_to(plain, writer)).startswith(b"(ok (help")
        server.update(with_tls, {})
        sock = await asyncio.to_thread(dial, server.tls_port, authority.client("a.example"))
        sock.close()
    assert "TLS has been switched off" in caplog.text


async def _said_to(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Return the answer to a first question in plain text; nothing if there is none."""
    try:
        writer.write(b"help\n")
        return await asyncio.wait_for(reader.readline(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_leaving_waits_for_the_workers() -> None:
    running, left = threading.Event(), threading.Event()

    def slow(incoming: Incoming) -> None:
        running.set()
        assert incoming.wait_stopped(10)
        left.set()

    settings = RelocationSettings(
        listens=True, address="127.0.0.1", port=0, hosts_allow=HostsAllow.parse("")
    )
    async with RelocationServer(settings, {"slow": slow}, events=Deaf()) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"slow\n")
        assert await asyncio.to_thread(running.wait, 10)
    assert left.is_set()
    writer.close()


async def test_the_limit_of_migrations_holds_for_migrations_alone() -> None:
    def long(incoming: Incoming) -> None:
        incoming.channel.send([b"begun\n"])
        assert incoming.wait_stopped(10)

    def short(incoming: Incoming) -> None:
        incoming.channel.send([b"done\n"])

    ops = {
        "receive": long,
        incoming_op.OPERATION: long,
        resolve.OPERATION: short,
        stripes.OPERATION: short,
    }
    settings = RelocationSettings(
        listens=True,
        address="127.0.0.1",
        port=0,
        hosts_allow=HostsAllow.parse(""),
        max_incoming=1,
    )
    async with RelocationServer(settings, ops, events=Deaf()) as server:

        async def ask(op: str) -> tuple[bytes, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"{op}\n".encode())
            return await asyncio.wait_for(reader.readline(), 10), writer

        said = [await ask(op) for op in ("receive", *ops)]
        for _, writer in said:
            writer.close()
    begun, receive, ours, question, lane = (line for line, _ in said)
    assert begun == b"begun\n"
    for refused in (receive, ours):
        assert b"1 migrations are coming in, at most 1 are taken" in refused
    assert (question, lane) == (b"done\n", b"done\n")


def test_settings_are_those_of_the_file(tmp_path: Path) -> None:
    config = XendConfig(
        relocation_server=True,
        relocation_port=9002,
        relocation_hosts_allow="^a$ ^b$",
        unix_server=True,
        max_incoming=3,
    )
    settings = RelocationSettings.of(config, Paths(tmp_path))
    assert (settings.listens, settings.port, settings.max_incoming) == (True, 9002, 3)
    assert settings.hosts_allow.patterns == ("^a$", "^b$")
    assert settings.unix_path == tmp_path / "var/lib/xend/relocation-socket"


def test_peer_is_told_in_plain_words() -> None:
    assert told(RelocationError("no room")) == "no room"
