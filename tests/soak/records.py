"""An old sender's stream, hurt at the border of each of its records.

The sender's kernel holds so little that it hears of a refusal in time, as with a guest of real
size. What must hold: never two copies that may run, never none, and a daemon that goes on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests import recorded
from tests.bytes_source import BytesSource
from tests.drive import Recorder
from tests.peers.relocation_host import Host, converse, read_all, receiving
from tests.peers.xend import Sender, bound_buffers
from tests.streams import UUID, config, entries, envelope, hvm_image, pv_image
from xendpy.guest.domain import DomainConfig
from xendpy.guest.pages import PAGE_SIZE
from xendpy.migration.receive import NoGuest, drive
from xendpy.paths import Paths
from xendpy.relocation.channel import unacknowledged
from xendpy.stream.xend import decode_body, read_envelope

BUFFER_BYTES = 32 << 10  # on either side; the kernel doubles it
IN_FLIGHT = 4 * BUFFER_BYTES  # what a sender may take for sent though nobody has it
ZEROS = bytes(PAGE_SIZE)
SENT, CUT, RESET = "sent", "cut", "reset"
FLIPS = (0x01, 0x80, 0xFF)
ROUNDS = [entries(range(128)), entries(range(64), 1), entries(range(0, 20, 2), 2)]


@dataclass(frozen=True)
class Stream:
    """A whole relocation, behind its `receive`."""

    name: str
    wire: bytes
    uuid: str = UUID


@dataclass(frozen=True)
class Fault:
    """`how` the stream ends, after `at` bytes if it is cut; else `flip` is what happens to the
    byte there."""

    how: str
    at: int
    flip: int = 0


def made() -> list[Stream]:
    """Return streams of a live migration in three rounds, more than the kernel holds."""
    pv = pv_image(ROUNDS, p2m_size=128, vcpus=(0, 1), unmapped=(7,), xcnt=40, batch_pages=32)
    hvm = hvm_image(ROUNDS, vcpus=(0, 1), batch_pages=32)
    return [
        Stream("pv", envelope(config(vcpus=2)) + pv.wire),
        Stream("hvm", envelope(config(hvm=True, vcpus=2)) + hvm.wire),
    ]


def real() -> list[Stream]:
    """Return what a real xend 4.4 sent."""
    found = []
    for name in recorded.RELOCATIONS:
        wire, _ = recorded.load(name)
        raw = drive(read_envelope(), BytesSource(wire), NoGuest()).config_bytes
        found.append(Stream(name, wire, DomainConfig.parse(raw).uuid))
    return found


class _Places(BytesSource):
    """Notes where each read begins."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.found: list[int] = []

    def recv_into(self, views: Sequence[memoryview]) -> None:
        self.found.append(self.offset)
        super().recv_into(views)

    def recv_rest(self, limit: int) -> bytes:
        self.found.append(self.offset)
        return super().recv_rest(limit)


def borders(stream: Stream) -> list[int]:
    """Return where every field, list and run of pages of a stream begins."""
    source = _Places(stream.wire)
    raw = drive(read_envelope(), source, NoGuest()).config_bytes
    drive(decode_body(DomainConfig.parse(raw).guest_type), source, Recorder())
    return sorted(set(source.found))


def faults(stream: Stream) -> list[Fault]:
    """Return every fault at every border."""
    return [
        fault
        for at in borders(stream)
        for fault in (Fault(CUT, at), Fault(RESET, at), *(Fault(SENT, at, f) for f in FLIPS))
    ]


@asynccontextmanager
async def hasty(place: Path) -> AsyncIterator[Host]:
    """Run a host below `place` whose kernel holds little of what it has not read."""
    async with receiving(place) as host:
        bound_buffers(host.server, BUFFER_BYTES)
        yield host


async def hurt(host: Host, stream: Stream, fault: Fault, number: int) -> str:
    """Send the stream so, as the host's `number`th migration; return what became of it.

    Raises:
        AssertionError: the guest is lost or doubled, or the daemon does not go on.
    """
    before = len(host.store.unpaused)
    lives = await asyncio.to_thread(_send, host.address, stream, fault)
    await host.ended(number)
    whole = [guest.name for guest in host.store.domains()]
    runs = host.store.unpaused[before:]
    partials = host.store.partials()
    assert not (runs and lives), f"{stream.name} {fault}: runs here and there"
    assert lives or whole or partials, f"{stream.name} {fault}: lost"
    assert fault.how == SENT or not runs, f"{stream.name} {fault}: runs, and was cut"
    assert len(whole) + len(partials) <= 1
    assert (await asyncio.to_thread(_asked, host)).startswith(b"(ok (help")
    for guest in host.store.domains():
        host.store.destroy(host.store.find(guest.name))
    for partial in partials:
        host.store.discard_partial(partial.label)
    return "whole" if whole else "kept" if partials else "refused"


def _asked(host: Host) -> bytes:
    return converse(host.address, b"help\nquit\n", half_close=False, wait_s=40)


def _send(address: tuple[str, int], stream: Stream, fault: Fault) -> bool:
    """Send a stream; say whether the sender's guest lives on for certain."""
    if fault.how == SENT:
        wire = bytearray(stream.wire)
        wire[fault.at] ^= fault.flip
        sender = Sender(address, "4.4", buffer_bytes=BUFFER_BYTES)
        return sender.migrate(bytes(wire)).guest_lives
    with socket.create_connection(address, timeout=120) as sock:
        sock.sendall(b"receive\n")
        sock.recv(80)
        with suppress(ConnectionError):
            sock.sendall(stream.wire[: fault.at])
            if fault.how == RESET:
                _wait_sent(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # The network went away behind the sender's back: what was on its way counts as sent there.
    return len(stream.wire) - fault.at > IN_FLIGHT


def _wait_sent(sock: socket.socket) -> None:
    tick = threading.Event()
    while unacknowledged(sock):
        tick.wait(0.002)


def trickle(address: tuple[str, int], stream: Stream) -> bytes:
    """Send a stream, byte by byte around every border, and return what is answered."""
    around = {at + near for at in borders(stream) for near in range(-2, 4)}
    cuts = sorted(at for at in around if 0 < at < len(stream.wire))
    with socket.create_connection(address, timeout=120) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"receive\n")
        answer = sock.recv(80)
        for start, end in zip([0, *cuts], [*cuts, len(stream.wire)], strict=True):
            sock.sendall(stream.wire[start:end])
        sock.shutdown(socket.SHUT_WR)
        return answer + read_all(sock)


def memory(root: Path, stream: Stream) -> dict[int, int]:
    """Return a hash of each page with data of a guest that rests in the store below `root`."""
    found = {}
    path = Paths(root).store_dir / stream.uuid / "memory"
    with path.open("rb", buffering=0) as file:
        # An HVM guest of 24 MiB has pages just below 4 GiB: the holes are passed over.
        at, size = 0, path.stat().st_size
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole follows
                break
            page = os.pread(file.fileno(), PAGE_SIZE, at)
            if page != ZEROS:
                found[at // PAGE_SIZE] = hash(page)
            at += PAGE_SIZE
    return found
