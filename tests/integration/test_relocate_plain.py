"""Old xend senders against the real server and store over TCP: what they hear, what arrives."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tests import recorded
from tests.peers.relocating import HELP, READY, err, half_closing, parse_err, pv_guest, sent
from tests.peers.relocation_host import Host, converse, receiving
from tests.peers.xend import RELEASES, Background, Sender
from tests.streams import config, envelope, hvm_image
from xendpy.control.ownership import Ownership
from xendpy.control.workers import Workers
from xendpy.migration.handover import Step
from xendpy.migration.progress import MigrationState

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
        got = await asyncio.to_thread(half_closing, host, wire)
        incoming = await host.ended()
        (guest,) = host.store.domains()
    assert got == READY + b"(ok)\n"
    assert incoming.progress.state is MigrationState.DONE
    assert incoming.progress.total_pages == description["p2m_size"]
    assert incoming.progress.bytes_done == len(wire)
    assert incoming.progress.name == guest.name
    assert host.store.unpaused == [guest.name]


@pytest.mark.parametrize("release", RELEASES)
async def test_pv_guest_comes_from_every_release(tmp_path: Path, release: str) -> None:
    async with receiving(tmp_path) as host:
        report = await sent(host, pv_guest(release), release)
        await host.ended()
        names = [guest.name for guest in host.store.domains()]
    assert report.succeeded
    assert not report.guest_lives
    assert names == host.store.unpaused == ["web1"]


@pytest.mark.parametrize("release", ["3.1", "3.4", "4.0", "4.4"])
async def test_hvm_guest_comes_from_every_release(tmp_path: Path, release: str) -> None:
    wire = envelope(config(hvm=True)) + hvm_image(release=release).wire
    async with receiving(tmp_path) as host:
        report = await sent(host, wire, release)
        await host.ended()
    assert report.succeeded
    assert host.store.unpaused == ["web1"]


async def test_payload_behind_the_request_is_not_lost(tmp_path: Path) -> None:
    async with receiving(tmp_path) as host:
        got = await asyncio.to_thread(
            converse, host.address, b"receive\n" + pv_guest(), half_close=True, wait_s=20
        )
    assert got == READY + b"(ok)\n"


async def test_pv_guest_is_acknowledged_before_the_sender_closes(tmp_path: Path) -> None:
    async with receiving(tmp_path) as host:
        with await asyncio.to_thread(host.connect) as sock:

            def send() -> bytes:
                sock.sendall(b"receive\n" + pv_guest())
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
            wire = pv_guest(release)
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
            await asyncio.to_thread(sock.sendall, b"receive\n" + pv_guest())
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
            await asyncio.to_thread(sock.sendall, b"receive\n" + pv_guest())
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
        report = await sent(host, pv_guest() + b"junk" * 10)
        await host.ended()
    assert report.succeeded
    assert host.store.unpaused == ["web1"]
    assert "sent 40 bytes after the end of the stream" in caplog.text
