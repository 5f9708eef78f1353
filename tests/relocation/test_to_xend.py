"""A xend that says no while its sender still writes."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control.fakes import FakeHypervisor, guest_config
from xendpy.errors import MigrationError
from xendpy.hypervisor.durable import Durable
from xendpy.migration.handover import Direction, Entry, Step, new_id
from xendpy.migration.journal import Journal
from xendpy.migration.send import CancelToken, MigrationPlan
from xendpy.relocation.channel import Channel
from xendpy.relocation.outgoing import Outcome, Transfer
from xendpy.relocation.to_xend import send_to_xend
from xendpy.stream.legacy_dialect import DIALECTS
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.xend import encode_envelope

CONFIG = guest_config("web1")


class Peer:
    """The receiving end; reads all, and `says` something between the pages and the tail."""

    def __init__(self, sock: socket.socket, says: bytes) -> None:
        self._sock, self._says = sock, says
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._sock.recv(8) == b"receive\n"
        self._sock.sendall(b"(ready receive)\n")
        while self._sock.recv(1 << 20):
            pass

    def join(self) -> None:
        self._thread.join(80)
        self._sock.close()

    # What the sender's watcher is told.

    def handing_over(self) -> None:
        if self._says:
            self._sock.sendall(self._says)
        else:
            self._sock.shutdown(socket.SHUT_RDWR)

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_named: None


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def transfer(sock: socket.socket, peer: Peer, path: Path, source: Any) -> Transfer:
    ticks = itertools.count(1)
    journal = Journal(path, Durable(), lambda: float(next(ticks)))
    entry = journal.begin(
        Entry(
            id=new_id(), direction=Direction.OUT, step=Step.SENDING, name=CONFIG.name,
            uuid=CONFIG.uuid, peer="oldhost",
        )
    )  # fmt: skip
    return Transfer(
        channel=Channel(sock, peer="oldhost"),
        source=source,
        encoder=LegacyEncoder(DIALECTS["4.1"], CONFIG.guest_type),
        envelope=encode_envelope(CONFIG),
        journal=journal,
        entry=entry,
        plan=MigrationPlan(live=False, verdict_timeout_s=20.0),
        watcher=peer,
        cancel=CancelToken(),
        dial=lambda: pytest.fail("a xend is dialled once"),
    )


def send(ends: tuple[socket.socket, socket.socket], path: Path, says: bytes) -> tuple[Any, Any]:
    ours, theirs = ends
    hypervisor = FakeHypervisor()
    domain = hypervisor.add(CONFIG)
    with hypervisor.save(domain) as source:
        peer = Peer(theirs, says)
        task = transfer(ours, peer, path, source)
        try:
            return send_to_xend(task), source
        except MigrationError as error:
            return error, source
        finally:
            task.channel.close()
            peer.join()


def test_a_refusal_between_pages_and_tail_leaves_the_guest_here(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    said, source = send(ends, tmp_path, b"(err (type X) (value 'no room here'))\n")
    assert "no room here (from oldhost)" in str(said)
    assert source.ended[-1] == "resume"


def test_an_end_without_a_word_there_is_in_doubt(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    said, source = send(ends, tmp_path, b"")
    assert said is Outcome.IN_DOUBT
    assert source.ended[-1] == "hold"
