"""Brings to its end what a broken connection or a crash left open; redials as long as it takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from xendpy.control.dialling import Dialler
from xendpy.control.ownership import Ownership
from xendpy.control.workers import Workers
from xendpy.errors import JournalError, XendError
from xendpy.migration.handover import Direction, Entry, Step

log = logging.getLogger(__name__)

RETRY_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)  # between redials; the last one from then on


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
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """Have it look at once: there is news."""
        self._wanted.set()

    async def run(self) -> None:
        """Redial the targets of what is open, until nothing is; for ever."""
        attempts: dict[str, int] = {}
        while True:
            self._wanted.clear()
            pending = [entry for entry in self._open_entries() if entry.direction is Direction.OUT]
            for entry in pending:
                settled = await self._resolve(entry)
                attempts[entry.id] = 0 if settled else attempts.get(entry.id, 0) + 1
            attempts = {entry.id: attempts[entry.id] for entry in pending}
            await self._pause(attempts)

    async def _pause(self, attempts: dict[str, int]) -> None:
        """Wait for the next redial that is due, or for news."""
        waits = [RETRY_S[min(tries, len(RETRY_S) - 1)] for tries in attempts.values()]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), min(waits) if waits else None)

    async def _resolve(self, entry: Entry) -> bool:
        """Bring one open migration a step on; False if the peer cannot say yet."""
        try:
            if entry.step is Step.SENDING:
                entry = await self._ownership.keep(entry)
            return await self._redial(entry)
        except JournalError as error:
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
        try:
            return await self._ownership.heard(entry, answer.state)
        except XendError as error:
            log.warning("migration %s: %s", entry.id[:8], error)
            return False
