"""Brings to its end what a broken connection or a crash left open; redials as long as it takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable

from xendpy.control.dialling import Dialler
from xendpy.control.ownership import Ownership
from xendpy.control.workers import Workers
from xendpy.errors import XendError
from xendpy.migration.handover import Direction, Entry, Step

log = logging.getLogger(__name__)

RETRY_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)  # between redials; the last one from then on
DIALS = 8  # peers asked at a time; one that does not answer takes half a minute


class Resolver:
    """Asks the targets of open migrations, and acts on what they stand by.

    `open_entries` gives what is open and not under way.
    """

    def __init__(
        self,
        open_entries: Callable[[], list[Entry]],
        ownership: Ownership,
        dialler: Dialler,
        workers: Workers,
    ) -> None:
        self._open_entries = open_entries
        self._ownership = ownership
        self._dialler = dialler
        self._workers = workers
        self._news = asyncio.Event()
        # One for each peer: all that a dead one has of ours keeps one worker waiting.
        self._lines: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._dials = asyncio.Semaphore(DIALS)

    def wake(self) -> None:
        """Have it look at once: there is news."""
        self._news.set()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Redial the targets of what is open, each in a task of its own; for ever."""
        pursued: set[str] = set()

        async def pursue(entry_id: str) -> None:
            await self._pursue(entry_id)
            pursued.discard(entry_id)

        async with asyncio.TaskGroup() as tasks:
            while True:
                news = self._news
                for entry_id in self._pending().keys() - pursued:
                    pursued.add(entry_id)
                    tasks.create_task(pursue(entry_id))
                await news.wait()

    def _pending(self) -> dict[str, Entry]:
        entries = self._open_entries()
        return {entry.id: entry for entry in entries if entry.direction is Direction.OUT}

    async def _pursue(self, entry_id: str) -> None:
        """Redial the target of one migration until nothing of it is open."""
        tries, news = 0, self._news
        while (entry := self._pending().get(entry_id)) is not None:
            async with self._lines[entry.peer, entry.port], self._dials:
                settled = await self._resolve(entry)
            tries = 0 if settled else tries + 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), RETRY_S[min(tries, len(RETRY_S) - 1)])
            news = self._news

    async def _resolve(self, entry: Entry) -> bool:
        """Bring one open migration a step on; False if the peer cannot say yet."""
        try:
            if entry.step is Step.SENDING:
                entry = await self._ownership.keep(entry)
            return await self._redial(entry)
        except XendError as error:
            # Of the journal, or of a driver whose guest is busy: again later.
            log.warning("migration %s: %s", entry.id[:8], error)
            return False

    async def _redial(self, entry: Entry) -> bool:
        if entry.step is Step.SENT or not entry.peer_host_id:
            if entry.step in (Step.KEPT, Step.MOVED):  # a xend is told nothing
                await self._ownership.close(entry)
            return entry.step is not Step.SENT
        try:
            answer = await self._workers.long(lambda: self._dialler.ask_peer(entry), lambda: None)
        except XendError as error:
            log.info("migration %s: %s cannot say yet: %s", entry.id[:8], entry.peer, error)
            return False
        if answer.host_id != entry.peer_host_id:
            log.warning(
                "migration %s: %s is another host now (%s): that settles nothing",
                entry.id[:8], entry.peer, answer.host_id,
            )  # fmt: skip
            return False
        return await self._ownership.heard(entry, answer.state)
