"""The relocation port: listeners, admission, the control phase, and a worker for each migration.

One peer is one task; a migration is one task and one worker thread, inside it. The event loop
never waits for a name server, a disk or a guest's bytes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol

from xendpy.errors import RelocationError
from xendpy.migration.reception import start
from xendpy.relocation.admission import Counts, Muffler, Names, full_name
from xendpy.relocation.channel import Channel
from xendpy.relocation.handshake import Receive
from xendpy.relocation.listen import listen_tcp, listen_unix, remove_unix
from xendpy.relocation.operation import Incoming, Operation, Operations
from xendpy.relocation.server_peer import Peer, admit, converse, refuse
from xendpy.relocation.settings import RelocationSettings

log = logging.getLogger(__name__)

MAX_WORKERS = 256  # what the option for migrations at a time can reach
ACCEPT_PAUSE_S = 0.1


class RelocationEvents(Protocol):
    """Who is told of migrations; called in the event loop, must not block."""

    def began(self, incoming: Incoming) -> None: ...

    def ended(self, incoming: Incoming) -> None: ...


class RelocationServer:
    """Entering it opens the listeners; leaving it ends every connection and waits for workers."""

    def __init__(
        self,
        settings: RelocationSettings,
        operations: Operations,
        *,
        events: RelocationEvents,
        resolve: Callable[[str], str] = full_name,
    ) -> None:
        self._settings = settings
        self._operations = operations
        self._events = events
        self._names = Names(resolve)
        self._workers = ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="migration")
        self._counts = Counts()
        self._muffler = Muffler()
        self._numbers = itertools.count(1)
        self._listeners: list[socket.socket] = []
        self._accepting: set[asyncio.Task[None]] = set()
        self._peers: dict[asyncio.Task[None], Peer] = {}
        self._drains = 0

    async def __aenter__(self) -> RelocationServer:
        """Open the listeners.

        Raises:
            RelocationError: one cannot be opened; none is then.
        """
        try:
            self._listen()
        except RelocationError:
            self._stop_listening()
            raise
        for listener in self._listeners:
            self._accepting.add(asyncio.create_task(self._accept(listener)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.drain(0)
        finally:
            self._names.close()
            self._workers.shutdown(wait=False)  # idle: every peer's task has awaited its own

    @property
    def port(self) -> int:
        """The TCP port that is listened on; 0 without one."""
        for listener in self._listeners:
            if listener.family == socket.AF_INET:
                return int(listener.getsockname()[1])
        return 0

    def update(self, settings: RelocationSettings, operations: Operations) -> None:
        """Apply rules, limits and operations to peers that come from here on."""
        old = self._settings
        if (old.listens, old.address, old.port) != (
            settings.listens,
            settings.address,
            settings.port,
        ):
            log.warning("another relocation address or port takes effect at the next start")
        self._settings = settings
        self._operations = operations

    async def drain(self, deadline_s: float | None) -> None:
        """Stop accepting, end what can be ended without harm, and wait for every worker.

        A guest that is being handed over has `deadline_s` seconds to finish; a second call, or
        the deadline, cuts it: what has come is kept. None = as long as it takes.
        """
        self._drains += 1
        await self._stop_accepting()
        for task, peer in list(self._peers.items()):
            if self._drains > 1 or peer.incoming is None or not peer.incoming.ending:
                _abort(task, peer)
        if self._peers and deadline_s != 0:
            await asyncio.wait(list(self._peers), timeout=deadline_s)
        for task, peer in list(self._peers.items()):
            _abort(task, peer)
        if self._peers:
            await asyncio.wait(list(self._peers))

    def _listen(self) -> None:
        settings = self._settings
        if settings.listens:
            self._listeners.append(listen_tcp(settings.address, settings.port))
            log.info("listening on %s:%d", settings.address or "*", self.port)
        if settings.unix_path is not None:
            self._listeners.append(listen_unix(settings.unix_path))
            log.info("listening on %s", settings.unix_path)

    async def _stop_accepting(self) -> None:
        for task in self._accepting:
            task.cancel()
        if self._accepting:
            await asyncio.wait(self._accepting)
        self._accepting.clear()
        self._stop_listening()

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            path = listener.getsockname() if listener.family == socket.AF_UNIX else None
            listener.close()
            if path is not None:
                remove_unix(Path(path))
        self._listeners.clear()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                self._warn("cannot accept a connection: %s", error)
                # Out of descriptors or memory: the listener stays readable, and there is no
                # event that says when a descriptor becomes free.
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if listener.family == socket.AF_UNIX:
                self._welcome(Peer(sock, "", "the local socket"))
            else:
                self._welcome(Peer(sock, address[0], f"{address[0]}:{address[1]}"))

    def _welcome(self, peer: Peer) -> None:
        settings = self._settings
        reason = self._counts.enter(
            peer.address,
            max_total=settings.max_connections,
            max_per_peer=settings.max_connections_per_peer,
        )
        if reason:
            peer.sock.close()
            self._warn("closed the connection of %s: %s", peer.label, reason)
            return
        task = asyncio.create_task(self._serve(peer))
        self._peers[task] = peer
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        # Here and not in the task: one that is cancelled before it began runs none of its lines.
        peer = self._peers.pop(task)
        self._counts.leave(peer.address)
        peer.sock.close()

    async def _serve(self, peer: Peer) -> None:
        try:
            settings = self._settings
            if await admit(peer, settings, self._names):
                request = await converse(peer, self._operations, settings.control_timeout_s)
                if request is not None:
                    await self._operate(peer, request)
        except TimeoutError:
            log.info(
                "closed the connection of %s: no operation within %g s",
                peer.label,
                self._settings.control_timeout_s,
            )
        except OSError as error:
            log.debug("the connection of %s broke: %s", peer.label, error)
        except Exception:
            log.exception("the connection of %s ended by a fault of this daemon", peer.label)

    async def _operate(self, peer: Peer, request: Receive) -> None:
        running = sum(other.incoming is not None for other in self._peers.values())
        limit = min(self._settings.max_incoming, MAX_WORKERS)
        operation = self._operations.get(request.op)
        if operation is None or running >= limit:
            await refuse(peer, f"{running} migrations are coming in, at most {limit} are taken")
            return
        incoming = self._incoming(peer, request)
        peer.incoming = incoming
        self._events.began(incoming)
        try:
            await self._work(operation, incoming)
        finally:
            self._events.ended(incoming)

    def _incoming(self, peer: Peer, request: Receive) -> Incoming:
        peer.sock.setblocking(True)
        if peer.address:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        channel = Channel(
            peer.sock,
            peer=peer.label,
            prefix=request.leftover,
            stall_timeout_s=self._settings.stall_timeout_s,
        )
        number = str(next(self._numbers))
        return Incoming(number, channel, request, start(number, peer.label))

    async def _work(self, operation: Operation, incoming: Incoming) -> None:
        """Run the operation in a worker; a cancelled task aborts it, and still waits for it."""
        loop = asyncio.get_running_loop()
        worker = loop.run_in_executor(self._workers, _run, operation, incoming)
        cancelled = False
        while not worker.done():
            try:
                await asyncio.wait([worker])
            except asyncio.CancelledError:
                incoming.abort("shutdown")
                cancelled = True
        if cancelled:
            worker.exception()
            raise asyncio.CancelledError
        worker.result()

    def _warn(self, text: str, *values: object) -> None:
        muffled = self._muffler.due(asyncio.get_running_loop().time())
        if muffled is not None:
            log.warning(text + (f" ({muffled} more like this)" if muffled else ""), *values)


def _run(operation: Operation, incoming: Incoming) -> None:
    with incoming.channel:
        try:
            operation(incoming)
        except Exception:
            log.exception("migration %s failed by a fault of this daemon", incoming.id)
            incoming.fail("internal error")


def _abort(task: asyncio.Task[None], peer: Peer) -> None:
    if peer.incoming is not None:
        peer.incoming.abort("shutdown")
    else:
        task.cancel()
