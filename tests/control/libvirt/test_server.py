"""libvirt's sockets as strangers may use them: random, truncated, huge, too many."""

from __future__ import annotations

import asyncio
import random
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.fakes import FakeHypervisor, guest_config
from tests.control.libvirt.client import DEADLINE_S, OPEN, Client
from xendpy.control import closing
from xendpy.control.libvirt import server
from xendpy.control.libvirt.layouts import KNOWN, LAYOUTS
from xendpy.control.libvirt.server import MAX_CLIENTS, TABLE, LibvirtServer
from xendpy.control.libvirt.session import Host
from xendpy.control.libvirt.wire import (
    FROM_XEN,
    KEEPALIVE_PROGRAM,
    LENGTH,
    MAX_OPENING,
    PING,
    PONG,
    REMOTE_PROGRAM,
    Code,
    Packet,
    Status,
    Type,
    message,
)
from xendpy.control.libvirt.xdr import Reader, Writer
from xendpy.relocation.hosts import HostsAllow

HOSTNAME, SAVE, CAPABILITIES, DEFINE = 59, 55, 7, 11
UUID = guest_config("web1").uuid


async def check_served(directory: Path) -> None:
    """Check that whoever keeps to the rules is still served."""
    client = await (await Client.connect(directory)).opened()
    answer = await client.call(HOSTNAME)
    assert Reader(answer.body).string() == "et-virt07"
    client.close()


def random_body(chance: random.Random, procedure: int, directory: Path) -> bytes:
    """Return arguments of the right kinds, and now and then bytes of none."""
    texts = ("", "web1", "x" * 300, "é", "..", "<domain/>", "xen+unix:///", str(directory / "f"))
    writer = Writer()
    for word in LAYOUTS[procedure].split():
        match word:
            case "flags":
                writer.u32(KNOWN.get(procedure, 0) & chance.getrandbits(32))
            case "i32" | "u32":
                writer.u32(chance.choice((0, 1, 7, 1 << 31, (1 << 32) - 1)))
            case "u64":
                writer.u64(chance.choice((0, 1, 4096, (1 << 64) - 1)))
            case "string" | "opaque":
                writer.string(chance.choice(texts))
            case "opt-string":
                writer.opt_string(chance.choice((None, *texts)))
            case "uuid":
                writer.uuid(UUID)
            case "domain":
                writer.domain("web1", UUID, 1)
            case "opt-domain":
                writer.u32(1).domain("web1", UUID, 1)
            case "domains":
                writer.u32(chance.choice((0, 1)))
            case "pool":
                writer.string(chance.choice(texts)).uuid(UUID)
            case "volume":
                writer.string("a").string(chance.choice(texts)).string("/a")
    body = bytearray(writer.data())
    if body and chance.random() < 0.3:
        body[chance.randrange(len(body))] = chance.randrange(256)
    return bytes(body) + chance.randbytes(chance.choice((0, 0, 0, 4)))


@pytest.mark.parametrize("seed", range(4))
async def test_every_procedure_answers_whatever_it_is_given(
    sockets: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    client = await (await Client.connect(sockets)).opened()
    for procedure in chance.sample(sorted(TABLE), len(TABLE)):
        answer = await client.call(procedure, random_body(chance, procedure, tmp_path))
        if answer.status == Status.ERROR:
            assert Reader(answer.body).i32() != Code.INTERNAL_ERROR, TABLE[procedure].name
    client.close()
    await check_served(sockets)


async def test_random_bytes_end_a_connection_and_no_other(sockets: Path) -> None:
    chance = random.Random(0)
    other = await (await Client.connect(sockets)).opened()
    for _ in range(100):
        client = await Client.connect(sockets)
        client.writer.write(chance.randbytes(chance.randrange(200)))
        client.writer.write_eof()
        assert await client.ended()
        client.close()
    assert (await other.call(HOSTNAME)).status == Status.OK
    other.close()


async def test_a_packet_that_is_cut_short_anywhere_ends_the_connection(sockets: Path) -> None:
    body = Writer().opt_string("xen:///system").u32(0).data()
    whole = Packet(REMOTE_PROGRAM, 1, OPEN, Type.CALL, 1, Status.OK, body).encode()
    for size in range(len(whole)):
        client = await Client.connect(sockets)
        client.writer.write(whole[:size])
        client.writer.write_eof()
        assert await client.ended(), size
        client.close()
    await check_served(sockets)


@pytest.mark.parametrize("length", [0, 27, (32 << 20) + 4, (1 << 32) - 1])
@pytest.mark.parametrize("opened", [False, True], ids=["stranger", "client"])
async def test_a_length_that_cannot_be_ends_the_connection_at_once(
    sockets: Path, length: int, opened: bool
) -> None:
    client = await Client.connect(sockets)
    if opened:
        await client.opened()
    client.writer.write(LENGTH.pack(length))
    assert await client.ended()
    client.close()
    await check_served(sockets)


@pytest.mark.parametrize("waits", [True, False], ids=["after-the-answer", "at-once"])
async def test_the_first_call_of_an_opened_connection_may_be_large(
    sockets: Path, *, waits: bool
) -> None:
    client = await Client.connect(sockets)
    if waits:
        await client.opened()
    else:
        client.begin(OPEN, Writer().opt_string(None).u32(0).data())
    text = f"<domain>{' ' * MAX_OPENING}</domain>"
    client.begin(DEFINE, Writer().string(text).data())
    if not waits:
        assert (await client.receive()).status == Status.OK
    answer = Reader((await client.receive()).body)
    assert (answer.i32(), answer.i32()) == (Code.INVALID_ARG, FROM_XEN)
    assert answer.opt_string() == "<memory> is missing"
    client.close()


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_of_a_thousand_connections_some_are_served_and_none_harms(
    sockets: Path, many_files: None
) -> None:
    clients: list[Client] = []
    served: list[bool] = []
    while len(clients) < 1000:
        clients.append(await Client.connect(sockets))
        served.append(await _opens(clients[-1]))
    assert served == [place < MAX_CLIENTS for place in range(1000)]
    for client in clients:
        client.close()
    # The server hears of each end in a turn of the loop of its own.
    async with asyncio.timeout(DEADLINE_S):
        while not await _opens(last := await Client.connect(sockets)):
            last.close()
    last.close()


async def _opens(client: Client) -> bool:
    try:
        await client.opened()
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
    return True


async def test_a_client_who_reads_nothing_counts_until_it_is_dropped(
    sockets: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(closing, "FLUSH_S", 0.2)
    monkeypatch.setattr(server, "MAX_CLIENTS", 1)
    body = Writer().opt_string(None).u32(0).data()
    first = Packet(REMOTE_PROGRAM, 1, OPEN, Type.CALL, 1, Status.OK, body)
    ask = Packet(REMOTE_PROGRAM, 1, CAPABILITIES, Type.CALL, 2, Status.OK, b"")
    with socket.socket(socket.AF_UNIX) as mute:
        mute.connect(str(sockets / "virtxend-sock"))
        await asyncio.to_thread(mute.sendall, first.encode() + 4000 * ask.encode())
        mute.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(DEADLINE_S):
            while not await _opens(last := await Client.connect(sockets)):
                last.close()
        assert "client dropped: it has not read its answers" in caplog.text
        last.close()


async def test_pings_and_questions_are_answered_while_a_call_takes_its_time(
    sockets: Path, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    client = await (await Client.connect(sockets)).opened()
    hypervisor.may_read.clear()
    path = str(tmp_path / "web1.sav")
    client.begin(SAVE, Writer().domain("web1", UUID, 1).string(path).data())
    saving = client.serial
    await asyncio.to_thread(hypervisor.reading.wait, DEADLINE_S)
    client.send(message(PING, b"", KEEPALIVE_PROGRAM))
    pong = await client.receive()
    assert (pong.program, pong.procedure, pong.serial) == (KEEPALIVE_PROGRAM, PONG, 0)
    assert (await client.call(HOSTNAME)).status == Status.OK
    hypervisor.may_read.set()
    answer = await client.receive()
    assert (answer.serial, answer.procedure, answer.status) == (saving, SAVE, Status.OK)
    client.close()


async def test_a_socket_that_somebody_serves_is_left_alone_and_a_dead_one_replaced(
    host: Host, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as libvirtd, socket.socket(socket.AF_UNIX) as dead:
        libvirtd.bind(str(directory / "libvirt-sock"))
        libvirtd.listen()
        dead.bind(str(directory / "virtxend-sock"))
        dead.close()
        async with LibvirtServer(host) as own:
            await own.listen_unix(directory)
            await check_served(directory)
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(directory / "libvirt-sock"))
                libvirtd.settimeout(DEADLINE_S)
                libvirtd.accept()[0].close()
        assert (directory / "libvirt-sock").exists()
        assert not (directory / "virtxend-sock").exists()


@pytest.mark.parametrize(("pattern", "let_in"), [(r"^127\.0\.0\.1$", True), (r"^10\.", False)])
async def test_over_tcp_hosts_allow_decides(host: Host, pattern: str, let_in: bool) -> None:
    async with LibvirtServer(host) as own:
        await check_tcp(own, HostsAllow.parse(pattern), let_in=let_in)


async def check_tcp(server: LibvirtServer, rules: HostsAllow, *, let_in: bool) -> None:
    port = await server.listen_tcp("127.0.0.1", 0, rules)
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    if let_in:
        await client.opened()
    else:
        assert await client.ended()
    client.close()


@pytest.mark.parametrize(("name", "let_in"), [("friend.example", True), ("127.0.0.1", False)])
async def test_over_tcp_the_name_is_the_resolvers(host: Host, name: str, let_in: bool) -> None:
    rules = HostsAllow.parse(r"^friend\.example$")
    async with LibvirtServer(host, resolve=lambda _: name) as server:
        await check_tcp(server, rules, let_in=let_in)
