"""What is being done to which guest: one long operation at a time.

Only the event loop's thread uses this, so that looking and taking is one step; nothing waits. The
second caller learns at once what the first is doing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from xendpy.errors import DomainStateError


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation under way, by the words that a fault uses for it."""

    what: str  # "being saved", "being migrated", ...
    name: str


@dataclass(slots=True)
class Operations:
    """The operations under way, by the guest's uuid."""

    _running: dict[str, Operation] = field(default_factory=dict)
    _waiting: dict[str, list[asyncio.Future[None]]] = field(default_factory=dict)

    @contextmanager
    def begin(self, uuid: str, name: str, what: str) -> Iterator[Operation]:
        """Hold the guest for one operation.

        Raises:
            DomainStateError: it is held; the text says by what.
        """
        other = self._running.get(uuid)
        if other is not None:
            raise DomainStateError(name, f"Domain '{name}' is {other.what}", actual=other.what)
        operation = Operation(what, name)
        self._running[uuid] = operation
        try:
            yield operation
        finally:
            del self._running[uuid]
            for waiter in self._waiting.pop(uuid, ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def idle(self, uuid: str) -> None:
        """Return as soon as nothing is being done to the guest."""
        while uuid in self._running:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(uuid, []).append(waiter)
            await waiter

    def of(self, uuid: str) -> str:
        """Return what is being done to the guest, empty for nothing."""
        operation = self._running.get(uuid)
        return operation.what if operation else ""

    def all(self) -> list[Operation]:
        return list(self._running.values())
