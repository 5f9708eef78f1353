"""Accepting connections, so that no flood of them keeps anybody from being heard."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from xendpy.relocation.admission import Muffler

log = logging.getLogger(__name__)

PAUSE_S = 0.1
# Of accepting before whoever was let in has a turn. With 0.01 a flood fills the backlog faster
# than it is emptied: 2.7 s instead of 0.1 s until an answer (tests/bench/bench_listener.py).
TURN_S = 0.2

# Called with the listener, the connection and the peer's address as accept() gives it.
Take = Callable[[socket.socket, socket.socket, Any], None]


class Acceptor:
    """One task for each listener; whoever takes a connection owns it, and must not block."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._tasks: set[asyncio.Task[None]] = set()
        self._muffler = Muffler()

    def start(self, listeners: Iterable[socket.socket]) -> None:
        """Begin to accept; the listeners do not block, and stay the caller's."""
        for listener in listeners:
            self._tasks.add(asyncio.create_task(self._accept(listener)))

    async def stop(self) -> None:
        """Accept nothing more; nobody uses the listeners then. May be repeated."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self._take(listener, *await loop.sock_accept(listener))
                # All that wait, as far as others can bear it: one at each turn of the loop let a
                # flood of short connections queue before everybody else, where no limit for one
                # peer reaches it.
                until_s = time.monotonic() + TURN_S
                while time.monotonic() < until_s:
                    self._take(listener, *listener.accept())
                await asyncio.sleep(0)  # a connection that waits is accepted without a pause
            except BlockingIOError:
                continue
            except OSError as error:
                self._warn(error)
                # Out of descriptors or memory: the listener stays readable, and there is no
                # event that says when a descriptor becomes free.
                await asyncio.sleep(PAUSE_S)

    def _warn(self, error: OSError) -> None:
        muffled = self._muffler.due(asyncio.get_running_loop().time())
        if muffled is not None:
            more = f" ({muffled} more like this)" if muffled else ""
            log.warning("cannot accept a connection: %s%s", error, more)
