"""A disk that fails at any step of a guest's arrival from an old sender."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from pathlib import Path

from tests.failing import FAILURES, FailingDurable
from tests.peers.relocation_host import Host, converse
from tests.peers.xend import Sender
from tests.soak.records import BUFFER_BYTES, Stream, hasty, made
from tests.streams import config, entries, envelope, pv_image
from xendpy.guest.pages import PAGE_SHIFT
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.paths import Paths

MEMORY_MIB = 1
OTHER = envelope(config("web2", uuid="00000000-0000-4000-8000-000000000002")) + pv_image().wire


@dataclass(frozen=True)
class DiskFault:
    """The `at`th operation of the arrival fails with `number`."""

    number: int
    at: int

    def __str__(self) -> str:
        return f"{errno.errorcode[self.number]} at {self.at}"


async def count(place: Path, stream: Stream) -> int:
    """Return how many operations an arrival takes that nothing disturbs."""
    async with hasty(place) as host:
        durable = _failing(host)
        before = durable.operations
        assert not await _send(host, stream.wire)
        await host.ended()
        assert host.store.unpaused
        return durable.operations - before


async def all_faults(place: Path, stream: Stream) -> list[DiskFault]:
    """Return every failure at every operation."""
    total = await count(place, stream)
    return [DiskFault(number, at) for at in range(1, total + 1) for number in FAILURES]


async def run(place: Path, stream: Stream, fault: DiskFault) -> str:
    """Send a guest to a disk that fails so; return what became of it.

    Raises:
        AssertionError: it is lost or doubled, at once or after a restart, or nobody comes in
            once the disk is well.
    """
    async with hasty(place) as host:
        durable = _failing(host)
        durable.arm(fault.number, fault.at)
        lives = await _send(host, stream.wire)
        await host.ended()
        durable.lift()
        runs = list(host.store.unpaused)
        assert not (lives and runs), f"{fault}: runs here and there"
        assert not await _send(host, OTHER)
        await host.ended(2)
        assert host.store.unpaused == [*runs, "web2"], f"{fault}: the daemon takes nobody"
    store = StoreHypervisor(Paths(place))
    whole = [guest.name for guest in store.domains() if guest.name != "web2"]
    kept = store.partials()
    store.close()
    assert len(whole) + len(kept) <= 1
    assert lives or whole or kept, f"{fault}: lost"
    assert not (lives and whole), f"{fault}: here and there after a restart"
    assert whole or not runs, f"{fault}: ran here, and is gone"
    return "whole" if whole else "kept" if kept else "refused"


def _failing(host: Host) -> FailingDurable:
    """Give a host a disk that can fail."""
    durable = FailingDurable()
    host.store._directory.durable = host.journal._durable = durable
    return durable


async def _send(host: Host, wire: bytes) -> bool:
    """Send a guest; say whether its sender still has it."""
    sender = Sender(host.address, "4.4", buffer_bytes=BUFFER_BYTES)
    report = await asyncio.to_thread(sender.migrate, wire)
    answer = await asyncio.to_thread(
        converse, host.address, b"help\nquit\n", half_close=False, wait_s=40
    )
    assert answer.startswith(b"(ok (help")
    return report.guest_lives


def live() -> Stream:
    return made()[0]


def cold() -> Stream:
    """Return a guest that is not sent live: its only round is its last."""
    pages = MEMORY_MIB << 20 >> PAGE_SHIFT
    image = pv_image([entries(range(pages))], p2m_size=pages, batch_pages=32)
    return Stream("cold", envelope(config(memory=MEMORY_MIB)) + image.wire)
