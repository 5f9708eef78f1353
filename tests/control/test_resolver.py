"""Redialling: whom a dead peer delays, and when it is asked again."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any, cast

import pytest

from xendpy.control.resolver import DIALS, Resolver
from xendpy.control.workers import Workers
from xendpy.errors import ChannelError, DomainStateError, XendError
from xendpy.migration.handover import Direction, Entry, Step
from xendpy.relocation.resolve import Answer

DEADLINE_S = 120.0
THERE = "00000000-0000-4000-8000-00000000000b"


def entry(number: int, peer: str) -> Entry:
    return Entry(
        id=f"{number:032x}",
        direction=Direction.OUT,
        step=Step.RELEASED,
        name=f"web{number}",
        uuid=f"00000000-0000-4000-8000-{number:012x}",
        peer=peer,
        port=8002,
        peer_host_id=THERE,
    )


class Peers:
    """Plays dialler and ownership: `dead` peers are silent until `give_up`, others answer."""

    def __init__(self, *entries: Entry) -> None:
        self.open = list(entries)
        self.dead = {"dead"}
        self.give_up = threading.Event()
        self.asked: list[str] = []
        self.heard_of = asyncio.Event()
        self.busy: list[XendError] = []  # what keeping a guest ends with
        self.workers = Workers()

    def ask_peer(self, entry: Entry) -> Answer:
        self.asked.append(entry.name)
        if entry.peer in self.dead:
            self.give_up.wait(DEADLINE_S)
            raise ChannelError("nobody answers")
        return Answer("running", THERE)

    async def keep(self, entry: Entry) -> Entry:
        if self.busy:
            raise self.busy.pop()
        return entry

    async def heard(self, entry: Entry, state: str) -> bool:
        assert state == "running"
        self.open.remove(entry)
        self.heard_of.set()
        return True

    def resolver(self) -> Resolver:
        return Resolver(lambda: list(self.open), cast(Any, self), cast(Any, self), self.workers)

    async def until_open(self, *entries: Entry) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.open != list(entries):
                await self.heard_of.wait()
                self.heard_of.clear()


async def stop(task: asyncio.Task[None], peers: Peers) -> None:
    peers.give_up.set()
    task.cancel()
    await asyncio.wait([task])
    peers.workers.close()


async def test_a_dead_peer_delays_no_other() -> None:
    silent = [entry(number, "dead") for number in range(2 * DIALS)]
    peers = Peers(*silent, *(entry(100 + number, f"alive{number}") for number in range(3)))
    task = asyncio.create_task(peers.resolver().run())
    await peers.until_open(*silent)  # while the dead one is still being asked
    assert sum(name in {one.name for one in silent} for name in peers.asked) == 1
    await stop(task, peers)


@pytest.mark.parametrize("news", [True, False])
async def test_a_peer_that_comes_back_is_asked_again(news: bool) -> None:
    peers = Peers(entry(1, "dead"))
    resolver = peers.resolver()
    task = asyncio.create_task(resolver.run())
    async with asyncio.timeout(DEADLINE_S):
        while not peers.asked:
            await asyncio.sleep(0)
    peers.dead.clear()
    peers.give_up.set()
    if news:
        peers.open.append(entry(2, "alive"))
        resolver.wake()
    await peers.until_open()
    assert peers.asked.count("web1") == 2
    await stop(task, peers)


async def test_a_guest_that_cannot_be_acted_on_now_is_no_reason_to_stop() -> None:
    left = [replace(entry(number, f"alive{number}"), step=Step.SENDING) for number in range(2)]
    peers = Peers(*left)
    peers.busy = [DomainStateError("web", "Domain 'web' is being saved.") for _ in range(2)]
    task = asyncio.create_task(peers.resolver().run())
    await peers.until_open()
    assert peers.busy == []
    await stop(task, peers)
