"""Old xend senders, and worse peers, against the real server and store over TCP."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests import recorded
from tests.peers.relocation_host import Host, converse, read_all, receiving
from tests.peers.xend import RELEASES, Background, Report, Sender
from tests.streams import config, entries, envelope, hvm_image, pv_image, vcpu_info
from xendpy.control.ownership import Ownership
from xendpy.control.workers import Workers
from xendpy.migration.handover import Step
from xendpy.migration.progress import MigrationState
from xendpy.migration.reception import ReceiveLimits
from xendpy.relocation.channel import unacknowledged
from xendpy.relocation.hosts import HostsAllow

READY = b"(ready receive)\n"
HELP = b"(ok (help quit receive))\n"
XEND_ERROR = b"(type \"<class 'xen.xend.XendError.XendError'>\")"


def err(text: bytes) -> bytes:
    return b"(err " + XEND_ERROR + b" (value '" + text + b"'))\n"


def parse_err(text: bytes) -> bytes:
    return b"(err (type \"<class 'xen.xend.sxp.ParseError'>\") (value '" + text + b"'))\n"


INVALID = b"not a valid guest state file: "

# What a real xend 4.4.4 answered, except: it lists sslreceive as well; it quotes the found
# signature in a way that its own senders cannot read; it says "Restore failed" for all the rest.
STAYS_OPEN = [
    ("help", b"help\n", HELP),
    ("help-no-newline", b"help", b""),
    ("list", b"(help)", HELP),
    ("list-newline", b"(help)\n", HELP),
    ("unknown", b"bogus\n", err(b"Invalid operation: bogus")),
    ("unknown-list", b"(bogus 1)\n", err(b"Invalid operation: bogus")),
    ("two", b"help\nhelp\n", HELP + HELP),
    ("crlf", b"help\r\n", HELP),
    ("unbalanced", b")\n", parse_err(b"syntax error: )")),
    ("empty-line", b"\n", b""),
    ("comment", b"# hello\nhelp\n", HELP),
    ("quoted", b"'help'\n", HELP),
]
CLOSES = [
    ("quit", b"quit\n", b""),
    ("help-no-newline-end", b"help", b""),
    ("receive-end", b"receive\n", READY + err(INVALID + b"signature read")),
    ("list-receive-end", b"(receive)", READY + err(INVALID + b"signature read")),
    (
        "wrong-signature",
        b"receive\n" + b"X" * 16,
        READY + err(INVALID + b"found XXXXXXXXXXXXXXXX"),
    ),
    (
        "bad-length",
        b"receive\nLinuxGuestRecord\xff\xff\xff\xff",
        READY + err(INVALID + b"config size -1, expected 1 to 1048576"),
    ),
    (
        "short-config",
        b"receive\nLinuxGuestRecord\0\0\0\x10(domain",
        READY + err(INVALID + b"config read"),
    ),
    (
        "no-name",
        b"receive\nLinuxGuestRecord\0\0\0\x08(domain)",
        READY + err(b"Missing VM Name"),
    ),
    (
        "pipelined-signature",
        b"receive\nLinuxGuestRecord",
        READY + err(INVALID + b"config size read"),
    ),
]


@pytest.mark.parametrize(
    ("data", "answer"), [row[1:] for row in STAYS_OPEN], ids=[row[0] for row in STAYS_OPEN]
)
async def test_control_phase_answers_as_xend_and_stays(
    tmp_path: Path, data: bytes, answer: bytes
) -> None:
    def peer(host: Host) -> bytes:
        with host.connect() as sock:
            sock.sendall(data)
            got = b""
            while len(got) < len(answer) and (data_in := sock.recv(len(answer))):
                got += data_in
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):  # nothing more, and no end
                sock.recv(1)
            return got

    async with receiving(tmp_path) as host:
        assert await asyncio.to_thread(peer, host) == answer


@pytest.mark.parametrize(
    ("data", "answer"), [row[1:] for row in CLOSES], ids=[row[0] for row in CLOSES]
)
async def test_receive_refuses_as_xend_and_closes(
    tmp_path: Path, data: bytes, answer: bytes
) -> None:
    async with receiving(tmp_path) as host:
        got = await asyncio.to_thread(converse, host.address, data, half_close=True, wait_s=20)
        assert not host.store.domains()
    assert got == answer


async def test_split_request_is_one(tmp_path: Path) -> None:
    async with receiving(tmp_path) as host:

        def peer() -> bytes:
            with host.connect() as sock:
                for byte in b"receive\n":
                    sock.sendall(bytes([byte]))
                return sock.recv(80)

        assert await asyncio.to_thread(peer) == READY


@pytest.mark.parametrize("name", recorded.RELOCATIONS)
async def test_recorded_stream_is_taken(tmp_path: Path, name: str) -> None:
    wire, description = recorded.load(name)
    async with receiving(tmp_path) as host:
        got = await asyncio.to_thread(_half_closing, host, wire)
        incoming = await host.ended()
        (guest,) = host.store.domains()
    assert got == READY + b"(ok)\n"
    assert incoming.progress.state is MigrationState.DONE
    assert incoming.progress.total_pages == description["p2m_size"]
    assert incoming.progress.bytes_done == len(wire)
    assert incoming.progress.name == guest.name
    assert host.store.unpaused == [guest.name]


def _half_closing(host: Host, wire: bytes) -> bytes:
    with host.connect() as sock:
        sock.sendall(b"receive\n")
        answer = sock.recv(80)
        sock.sendall(wire)
        sock.shutdown(socket.SHUT_WR)
        return answer + read_all(sock)


async def _sent(host: Host, wire: bytes, release: str = "4.4", cut: int | None = None) -> Report:
    sender = Sender(host.address, release)
    return await asyncio.to_thread(sender.migrate, wire, cut=cut)


def _pv(release: str = "4.4", pages: int = 64) -> bytes:
    image = pv_image(
        [entries(range(pages)), entries(range(5, 9)), entries([3])],
        release=release,
        p2m_size=pages,
    )
    return envelope(config()) + image.wire


@pytest.mark.parametrize("release", RELEASES)
async def test_pv_guest_comes_from_every_release(tmp_path: Path, release: str) -> None:
    async with receiving(tmp_path) as host:
        report = await _sent(host, _pv(release), release)
        await host.ended()
        names = [guest.name for guest in host.store.domains()]
    assert report.succeeded
    assert not report.guest_lives
    assert names == host.store.unpaused == ["web1"]


@pytest.mark.parametrize("release", ["3.1", "3.4", "4.0", "4.4"])
async def test_hvm_guest_comes_from_every_release(tmp_path: Path, release: str) -> None:
    wire = envelope(config(hvm=True)) + hvm_image(release=release).wire
    async with receiving(tmp_path) as host:
        report = await _sent(host, wire, release)
        await host.ended()
    assert report.succeeded
    assert host.store.unpaused == ["web1"]


async def test_payload_behind_the_request_is_not_lost(tmp_path: Path) -> None:
    async with receiving(tmp_path) as host:
        got = await asyncio.to_thread(
            converse, host.address, b"receive\n" + _pv(), half_close=True, wait_s=20
        )
    assert got == READY + b"(ok)\n"


async def test_pv_guest_is_acknowledged_before_the_sender_closes(tmp_path: Path) -> None:
    async with receiving(tmp_path) as host:
        with await asyncio.to_thread(host.connect) as sock:

            def send() -> bytes:
                sock.sendall(b"receive\n" + _pv())
                return sock.recv(16) + sock.recv(5)

            assert await asyncio.to_thread(send) == READY + b"(ok)\n"
            assert [guest.name for guest in host.store.domains()] == ["web1"]
            assert host.store.unpaused == []  # the sender may still have its own
        await host.ended()
        assert host.store.unpaused == ["web1"]


async def test_sender_that_destroys_first_is_waited_for(tmp_path: Path) -> None:
    # 4.0 and earlier destroy, then close; 3.x closes with (ok) unread, which shows as a reset.
    for number, release in enumerate(("3.4", "4.0")):
        async with receiving(tmp_path / release) as host:
            hold = threading.Event()
            sender = Sender(host.address, release, before_end=lambda hold=hold: hold.wait(80))
            wire = _pv(release)
            background = Background(lambda sender=sender, wire=wire: sender.migrate(wire))
            incoming = await host.begun()
            while not host.store.domains():  # bounded by the test's own timeout
                await asyncio.sleep(0)
            await asyncio.to_thread(incoming.channel.wait_acknowledged, 5)
            assert host.store.unpaused == []
            hold.set()
            report = await asyncio.to_thread(background.result)
            await host.ended()
            assert report.steps == ["destroyed", "closed"], number
            assert host.store.unpaused == ["web1"]


async def test_guest_stays_paused_while_the_sender_stays(tmp_path: Path) -> None:
    async with receiving(tmp_path, eof_timeout_s=0.05) as host:
        with await asyncio.to_thread(host.connect) as sock:
            await asyncio.to_thread(sock.sendall, b"receive\n" + _pv())
            await host.ended()
        assert [guest.name for guest in host.store.domains()] == ["web1"]
        assert host.store.unpaused == []
        (entry,) = host.journal.open_entries()
        assert (entry.name, entry.step, entry.in_doubt) == ("web1", Step.RECEIVED, True)


@pytest.mark.parametrize(("choice", "runs"), [("keep", ["web1"]), ("discard", [])])
async def test_an_operator_settles_whose_guest_it_is(
    tmp_path: Path, choice: str, runs: list[str]
) -> None:
    async with receiving(tmp_path, eof_timeout_s=0.05) as host:
        with await asyncio.to_thread(host.connect) as sock:
            await asyncio.to_thread(sock.sendall, b"receive\n" + _pv())
            await host.ended()
        workers = Workers()
        ownership = Ownership(host.store, host.journal, workers)
        await ownership.settle(host.journal.open_entries()[0], choice)
        workers.close()
        assert host.store.unpaused == runs
        assert len(host.store.domains()) == len(runs)
        assert host.journal.open_entries() == []


async def test_bytes_after_a_pv_guest_are_an_anomaly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving(tmp_path) as host:
        report = await _sent(host, _pv() + b"junk" * 10)
        await host.ended()
    assert report.succeeded
    assert host.store.unpaused == ["web1"]
    assert "sent 40 bytes after the end of the stream" in caplog.text


LARGE_PAGES = 4096  # 16 MiB: more than socket buffers hold


@pytest.mark.parametrize("release", ["3.4", "4.0", "4.4"])
async def test_refused_sender_keeps_its_guest_and_shows_the_text(
    tmp_path: Path, release: str
) -> None:
    head = envelope(config(memory=64))
    wire = head + random.Random(1).randbytes(LARGE_PAGES * 4096)
    limits = ReceiveLimits(max_guest_bytes=32 << 20)
    async with receiving(tmp_path, limits=limits) as host:
        report = await _sent(host, wire, release)
        incoming = await host.ended()
        assert not host.store.domains()
    assert incoming.channel.offset == len(head)  # not one byte of the image was read
    assert not report.succeeded
    assert report.guest_lives
    if RELEASES[release].reads_error:
        assert report.shown == (
            "web1 needs 64 MiB, at most 32 MiB are taken (xendpy-max-guest-memory)"
            " (from 127.0.0.1)"
        )


async def test_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    other = "11111111-94d1-0c5b-2d57-3b1f0a6c9e10"
    wire = envelope(config(uuid=other)) + random.Random(1).randbytes(LARGE_PAGES * 4096)
    async with receiving(tmp_path) as host:
        assert (await _sent(host, _pv())).succeeded
        await host.ended()
        report = await _sent(host, wire)
        await host.ended(2)
        assert len(host.store.domains()) == 1
    assert report.guest_lives
    assert "web1" in report.shown


async def test_bad_stream_is_told_in_the_middle(tmp_path: Path) -> None:
    good = _pv()
    wire = good[:-60000] + struct.pack("<i", 5000) + random.Random(1).randbytes(16 << 20)
    image = pv_image([entries(range(64))]).wire
    wire = envelope(config()) + image[: len(image) // 2 // 4096 * 4096] + wire
    async with receiving(tmp_path) as host:
        report = await _sent(host, wire)
        incoming = await host.ended()
        assert not host.store.domains()
        assert not host.store.partials()
    assert report.guest_lives
    assert report.shown.endswith("(from 127.0.0.1)")
    assert incoming.progress.state is MigrationState.FAILED


async def test_cut_before_the_end_of_the_first_round_leaves_nothing(tmp_path: Path) -> None:
    wire = _pv()
    async with receiving(tmp_path) as host:
        for number, cut in enumerate((len(envelope(config())) + 4, 40000, 64 * 4096), 1):
            await _sent(host, wire, cut=cut)
            await host.ended(number)
            assert not host.store.domains()
            assert not host.store.partials()


async def test_cut_after_the_first_round_is_kept_in_part(tmp_path: Path) -> None:
    wire = _pv()
    for cut in (len(wire) - 1, len(wire) - 5000, len(wire) - 12000):
        async with receiving(tmp_path / str(cut)) as host:
            await _sent(host, wire, cut=cut)
            incoming = await host.ended()
            assert not host.store.domains()
            assert len(host.store.partials()) == 1
            assert incoming.progress.state is MigrationState.FAILED


async def test_hvm_guest_without_its_device_model_is_kept_in_part(tmp_path: Path) -> None:
    for number, record in enumerate((b"", b"QemuDeviceModelRecord", b"QemuDeviceModelRecordXX")):
        wire = envelope(config(hvm=True)) + hvm_image(device_model=record).wire
        async with receiving(tmp_path / str(number)) as host:
            await _sent(host, wire)
            await host.ended()
            assert not host.store.domains()
            assert len(host.store.partials()) == 1


async def test_failure_behind_the_mark_of_the_end_reads_on_and_keeps(tmp_path: Path) -> None:
    image = pv_image()
    odd = struct.pack("<i", -99) + b"what nobody knows" * 100
    at = image.ending + len(vcpu_info(0, (0,)))
    wire = envelope(config()) + image.wire[:at] + odd
    async with receiving(tmp_path) as host:
        report = await _sent(host, wire)
        incoming = await host.ended()
        (partial,) = host.store.partials()
        assert not host.store.domains()
    assert not report.guest_lives
    assert incoming.channel.offset == len(wire)
    (rest,) = tmp_path.rglob("rest*")
    assert rest.read_bytes() == odd
    assert partial is not None


async def test_reset_is_no_end_of_an_hvm_stream(tmp_path: Path) -> None:
    wire = envelope(config(hvm=True)) + hvm_image().wire
    async with receiving(tmp_path) as host:

        def peer() -> None:
            with host.connect() as sock:
                sock.sendall(b"receive\n")
                sock.recv(80)
                sock.sendall(wire)
                _wait_sent(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        await asyncio.to_thread(peer)
        await host.ended()
        assert not host.store.domains()


def _wait_sent(sock: socket.socket) -> None:
    tick = threading.Event()
    while unacknowledged(sock):
        tick.wait(0.002)


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
        report = await _sent(host, _pv())
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
                converse, host.address, b"help\nreceive\n" + _pv(), half_close=False, wait_s=20
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
    wire = _pv()
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


async def test_drain_lets_a_hand_over_finish(tmp_path: Path) -> None:
    wire = _pv()
    async with receiving(tmp_path) as host:
        with await asyncio.to_thread(host.connect) as sock:
            await asyncio.to_thread(sock.sendall, b"receive\n" + wire[:-100])
            incoming = await host.begun()
            while not incoming.ending:  # bounded by the test's own timeout
                await asyncio.sleep(0)
            draining = asyncio.create_task(host.server.drain(20))
            await asyncio.sleep(0)
            assert not draining.done()
            await asyncio.to_thread(sock.sendall, wire[-100:])
            await asyncio.to_thread(sock.shutdown, socket.SHUT_WR)
            await asyncio.wait_for(draining, 80)
        assert [guest.name for guest in host.store.domains()] == ["web1"]


async def test_second_drain_cuts_a_hand_over_and_keeps_what_came(tmp_path: Path) -> None:
    wire = _pv()
    async with receiving(tmp_path) as host:
        with await asyncio.to_thread(host.connect) as sock:
            await asyncio.to_thread(sock.sendall, b"receive\n" + wire[:-100])
            incoming = await host.begun()
            while not incoming.ending:
                await asyncio.sleep(0)
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
                sock.sendall(b"receive\n" + _pv())
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        assert await asyncio.to_thread(peer) == READY + b"(ok)\n"
    assert not path.exists()
