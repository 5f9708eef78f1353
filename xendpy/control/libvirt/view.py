"""One connection's picture of the guests.

`virsh list` asks for the state of every guest in a call of its own. A connection therefore looks
at one picture of all guests for a moment; whatever it changes, and every event, ends that moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from xendpy.control.guests import Guests
from xendpy.errors import DomainNotFound
from xendpy.guest.domain import DomainSummary

PICTURE_S = 0.25  # how old a picture may be, or
PICTURE_COSTS = 4  # so many times what it took: `virsh list` of 1,000 guests asks 1,000 times


class View:
    """The guests of a moment ago; used in the event loop's thread."""

    def __init__(self, guests: Guests, clock: Callable[[], float] = time.monotonic) -> None:
        self._guests = guests
        self._clock = clock
        self._until_s = float("-inf")
        self._forgotten = 0  # times
        self._all: list[DomainSummary] = []
        self._by_uuid: dict[str, DomainSummary] = {}

    def forget(self) -> None:
        """Look anew next time; a picture that is being made is old already."""
        self._until_s = float("-inf")
        self._forgotten += 1

    async def all(self) -> list[DomainSummary]:
        """Return Domain-0, the live guests by id, then the managed ones that do not run."""
        began_s, forgotten = self._clock(), self._forgotten
        if began_s < self._until_s:
            return self._all
        found = await self._guests.guests()
        # Of a guest that is here twice, as while it migrates to its own host, the first.
        self._by_uuid = {guest.uuid: guest for guest in reversed(found)}
        self._all = found
        if forgotten == self._forgotten:
            made_s = self._clock()
            self._until_s = made_s + max(PICTURE_S, PICTURE_COSTS * (made_s - began_s))
        return found

    async def live(self) -> list[DomainSummary]:
        """Return Domain-0 and the live guests by id."""
        return [guest for guest in await self.all() if guest.domid is not None]

    async def find(self, uuid: str) -> DomainSummary:
        """Return the guest of a uuid.

        Raises:
            DomainNotFound: there is none.
        """
        await self.all()
        if uuid not in self._by_uuid:
            raise DomainNotFound(uuid)
        return self._by_uuid[uuid]
