"""The TLS port: xend's sslreceive, hosts with certificates, and peers that want neither."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography import x509

from tests.certificates import Authority, dial, old_client
from tests.peers.relocating import half_closing
from tests.peers.relocation_host import read_all, receiving
from tests.streams import config, envelope, hvm_image, pv_image
from xendpy.migration.progress import MigrationState
from xendpy.relocation.tls import TlsServer

T = TypeVar("T")
READY = b"(ready sslreceive)\n"
PV = envelope(config()) + pv_image(release="4.1").wire
HVM = envelope(config(hvm=True)) + hvm_image().wire
HELP = b"(ok (help quit receive sslreceive))\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("pki"))
    made.issue("here.example")
    made.issue("friend.example")
    return made


def tls(authority: Authority, **options: object) -> TlsServer:
    made = TlsServer.of(authority.config("here.example", **options), authority.paths)  # type: ignore[arg-type]  # keywords of both kinds
    assert made is not None
    return made


async def off(call: Callable[[], T]) -> T:
    return await asyncio.to_thread(call)


def old_sender(port: int, payload: bytes, *, good_bye: bool) -> bytes:
    """Send as xend does: sslreceive, one recv(80), the payload, and away."""
    with dial(port, old_client()) as sock:
        sock.sendall(b"sslreceive\n")
        answer = sock.recv(80)
        for start in range(0, len(payload), 16384):
            sock.sendall(payload[start : start + 16384])
        if good_bye:
            with suppress(ssl.SSLError):  # our (ok) may cross it
                sock.unwrap()
        else:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        return answer


@pytest.mark.parametrize("good_bye", [True, False], ids=["3.3", "4.0"])
@pytest.mark.parametrize("image", [PV, HVM], ids=["pv", "hvm"])
async def test_a_xend_sends_over_tls(
    authority: Authority, tmp_path: Path, good_bye: bool, image: bytes
) -> None:
    async with receiving(tmp_path, tls=tls(authority, ca=False)) as host:
        port = host.server.tls_port
        assert await off(lambda: old_sender(port, image, good_bye=good_bye)) == READY
        incoming = await host.ended()
        assert incoming.progress.state is MigrationState.DONE, incoming.progress.reason
        assert len(host.store.unpaused) == 1


async def test_sslreceive_on_the_plain_port_is_plain(authority: Authority, tmp_path: Path) -> None:
    async with receiving(tmp_path, tls=tls(authority, ca=False)) as host:
        said = await off(lambda: half_closing(host, PV, b"sslreceive"))
        assert said == READY + b"(ok)\n"
        assert (await host.ended()).progress.state is MigrationState.DONE


async def test_a_stream_cut_by_a_forged_end_is_not_taken(
    authority: Authority, tmp_path: Path
) -> None:
    async with receiving(tmp_path, tls=tls(authority, ca=False)) as host:
        port = host.server.tls_port
        await off(lambda: old_sender(port, PV[: len(PV) // 2], good_bye=False))
        incoming = await host.ended()
        assert incoming.progress.state is MigrationState.FAILED
        assert host.store.unpaused == []


async def test_help_is_answered_over_tls(authority: Authority, tmp_path: Path) -> None:
    def ask() -> bytes:
        with dial(host.server.tls_port, old_client()) as sock:
            sock.sendall(b"help\nhelp\n")
            got = b""
            while len(got) < 2 * len(HELP):
                got += sock.recv(100)
            sock.sendall(b"quit\n")
            return got + sock.recv(100)

    async with receiving(tmp_path, tls=tls(authority, ca=False)) as host:
        assert await off(ask) == HELP + HELP


def attempt(port: int, context: ssl.SSLContext) -> bytes:
    """Return the answer to help, empty if the host would not talk."""
    try:
        with dial(port, context) as sock:
            sock.sendall(b"help\n")
            return sock.recv(100)
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("verify", "shows", "good"),
    [
        ("required", "friend.example", True),
        ("required", "", False),
        ("optional", "", True),
        ("none", "", True),
    ],
)
async def test_certificates_are_wanted_as_configured(
    authority: Authority, tmp_path: Path, verify: str, shows: str, good: bool
) -> None:
    server = tls(authority, relocation_tls_verify=verify)
    async with receiving(tmp_path, tls=server) as host:
        answer = await off(lambda: attempt(host.server.tls_port, authority.client(shows)))
        assert (answer == HELP) is good
        if not good:
            await host.events.wait(lambda: host.events.refused == ["tls"])


async def test_a_stranger_s_certificate_is_refused(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Authority(tmp_path / "stranger")
    stranger.issue("friend.example")
    context = old_client()
    pki = stranger.pki
    context.load_cert_chain(pki.certificate_file("friend.example"), pki.key_file("friend.example"))
    for verify in ("required", "optional"):
        server = tls(authority, relocation_tls_verify=verify)
        async with receiving(tmp_path / verify, tls=server) as host:
            assert await off(lambda: attempt(host.server.tls_port, context)) == b""
            await host.events.wait(lambda: host.events.refused == ["tls"])


@pytest.mark.parametrize(
    ("pattern", "shows", "good"),
    [
        (r"^friend\.example$", "friend.example", True),
        (r"^friend\.example$", "", False),
        (r"^other\.example$", "friend.example", False),
        (r"^127\.0\.0\.1$", "", True),
    ],
)
async def test_hosts_allow_looks_at_verified_names(
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    pattern: str,
    shows: str,
    good: bool,
) -> None:
    caplog.set_level(logging.INFO, "xendpy.audit")
    server = tls(authority, relocation_tls_verify="optional")
    async with receiving(tmp_path, tls=server, hosts_allow=pattern) as host:
        answer = await off(lambda: attempt(host.server.tls_port, authority.client(shows)))
        assert (answer == HELP) is good
        assert host.events.refused == ([] if good else ["hosts-allow"])
    (line,) = [r.getMessage() for r in caplog.records if r.name == "xendpy.audit"]
    assert line.startswith("event=admitted" if good else "event=refused")
    assert ("name=friend.example" in line) is bool(shows)


async def test_an_unlisted_peer_gets_no_handshake_where_nobody_is_verified(
    authority: Authority, tmp_path: Path
) -> None:
    server = tls(authority, ca=False)
    async with receiving(tmp_path, tls=server, hosts_allow=r"^192\.0\.2\.1$") as host:
        with pytest.raises(OSError):
            await off(lambda: dial(host.server.tls_port, old_client()).close())
        assert host.events.refused == ["hosts-allow"]


async def test_dawdlers_over_tls_are_closed(authority: Authority, tmp_path: Path) -> None:
    def wait(first: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", host.server.tls_port), timeout=40) as sock:
            sock.sendall(first)
            return read_all(sock)

    server = tls(authority, ca=False)
    async with receiving(tmp_path, tls=server, control_timeout_s=0.2) as host:
        # Nothing at all, a handshake begun, and one that is none.
        assert await off(lambda: wait(b"")) == b""
        assert await off(lambda: wait(b"\x16\x03\x01\x02\x00\x01")) == b""
        assert b"(err" not in await off(lambda: wait(b"receive\n" * 20))
        assert host.events.refused == ["timeout", "timeout", "tls"]


async def test_the_plain_port_answers_while_others_dawdle_over_tls(
    authority: Authority, tmp_path: Path
) -> None:
    server = tls(authority, ca=False)
    socks: list[socket.socket] = []
    async with receiving(tmp_path, tls=server, max_connections_per_peer=200) as host:
        try:
            for _ in range(100):
                sock = await off(
                    lambda: socket.create_connection(("127.0.0.1", host.server.tls_port), 10)
                )
                sock.sendall(b"\x16\x03\x01")
                socks.append(sock)
            with await off(host.connect) as sock:
                sock.sendall(b"help\n")
                assert await off(lambda: sock.recv(100)) == HELP
        finally:
            for sock in socks:
                sock.close()


async def test_a_host_that_is_full_says_so_over_tls(authority: Authority, tmp_path: Path) -> None:
    def second() -> bytes:
        with dial(host.server.tls_port, old_client()) as sock:
            sock.sendall(b"sslreceive\n")
            return sock.recv(1000)

    server = tls(authority, ca=False)
    async with receiving(tmp_path, tls=server, max_incoming=1) as host:
        with await off(lambda: dial(host.server.tls_port, old_client())) as first:
            first.sendall(b"sslreceive\n")
            await host.begun()
            assert b"at most 1 are taken" in await off(second)
            assert host.events.refused == ["incoming"]


def shown(port: int, context: ssl.SSLContext) -> int:
    """Return the serial number of the certificate that a port shows."""
    with dial(port, context) as sock:
        sock.sendall(b"quit\n")
        return int(sock.getpeercert()["serialNumber"], 16)  # type: ignore[index,arg-type]  # verified


# SSL 2's hello, in which OpenSSL 0.9.8 offers TLS 1.0: two ciphers, no session, a challenge.
SSL2_HELLO = bytes.fromhex("801f 010301 0006 0000 0010 00002f 000035") + bytes(range(16))


@pytest.mark.parametrize(
    ("said", "answer"),
    [(b"sslreceive\n", b""), (b"\0", b""), (b"", b""), (SSL2_HELLO, b"\x15\x03")],
    ids=["plain", "garbage", "nothing", "old hello"],
)
async def test_what_begins_no_handshake_is_closed_at_once(
    authority: Authority, tmp_path: Path, said: bytes, answer: bytes
) -> None:
    def talk(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=40) as sock:
            with suppress(OSError):  # closed already
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
                return sock.recv(2)
            return b""

    async with receiving(tmp_path, tls=tls(authority, relocation_tls_min="1.0")) as host:
        assert await off(lambda: talk(host.server.tls_port)) == answer
        if said:
            await host.events.wait(lambda: host.events.refused == ["tls"])


async def test_a_renewed_certificate_is_shown_at_once(
    authority: Authority, tmp_path: Path
) -> None:
    authority.issue("renewed.example")
    made = TlsServer.of(authority.config("renewed.example"), authority.paths)
    async with receiving(tmp_path, tls=made) as host:
        port, client = host.server.tls_port, authority.client("friend.example")
        first = serial(authority, "renewed.example")
        assert await off(lambda: shown(port, client)) == first
        authority.pki.renew(["renewed.example"], datetime.now(UTC))
        second = serial(authority, "renewed.example")
        assert first != second == await off(lambda: shown(port, client))


async def test_a_certificate_without_its_key_is_not_taken_up(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for host in ("first.example", "second.example"):
        authority.issue(host)
    files = [authority.pki.certificate_file(host) for host in ("first.example", "second.example")]
    keys = [authority.pki.key_file(host) for host in ("first.example", "second.example")]
    serials = [serial(authority, host) for host in ("first.example", "second.example")]
    made = TlsServer.of(authority.config("first.example"), authority.paths)
    async with receiving(tmp_path, tls=made) as host:
        port, client = host.server.tls_port, authority.client("friend.example")
        files[1].replace(files[0])
        for _ in range(2):
            assert await off(lambda: shown(port, client)) == serials[0]
        assert len([row for row in caplog.records if "that it has" in row.message]) == 1
        keys[1].replace(keys[0])
        assert await off(lambda: shown(port, client)) == serials[1]


def serial(authority: Authority, host: str) -> int:
    data = authority.pki.certificate_file(host).read_bytes()
    return x509.load_pem_x509_certificate(data).serial_number
