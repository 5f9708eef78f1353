"""The relocation port: listeners, admission, the control phase, and a worker for each migration.

One peer is one task; a migration is one task and one worker thread, inside it. The event loop
never waits for a name server, a disk or a guest's bytes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

from xendpy.errors import ChannelError, ChannelTimeout, PeerRefused
from xendpy.migration.handover import new_id
from xendpy.migration.reception import start
from xendpy.relocation.admission import (
    Counts,
    Names,
    confirmed,
    confirmed_name,
    full_name,
)
from xendpy.relocation.audit import REPEATS_S, Audit, Refusal
from xendpy.relocation.channel import Channel
from xendpy.relocation.from_xend import refuse as refuse_channel
from xendpy.relocation.greeting import Greeting, turned_away
from xendpy.relocation.handshake import Receive
from xendpy.relocation.listen_all import Listeners, places
from xendpy.relocation.operation import Incoming, Operation, Operations, brings_guest
from xendpy.relocation.server_accept import Acceptor
from xendpy.relocation.server_peer import Admission, Peer, admit, converse, greeted, refuse
from xendpy.relocation.server_worker import in_worker
from xendpy.relocation.settings import RelocationSettings
from xendpy.relocation.tls import TlsServer, wrap

log = logging.getLogger(__name__)

MAX_WORKERS = 256  # what the option for migrations at a time can reach
TLS_OFF = "TLS has been switched off since this daemon began"


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
        confirm: Callable[[str, str], bool] = confirmed,
        audit: Audit | None = None,
    ) -> None:
        self._settings = settings
        self._operations = operations
        self._events = events
        self._audit = audit or Audit()
        self._confirm = confirm
        self._resolve = resolve
        self._names = Names(self._name_of)
        self._workers = ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="migration")
        # Apart, so that peers that dawdle over a handshake keep no migration waiting.
        self._greeters = ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="tls")
        self._counts = Counts()
        self._listeners = Listeners()
        self._acceptor = Acceptor(self._take)
        self._peers: dict[asyncio.Task[None], Peer] = {}
        self._drains = 0

    async def __aenter__(self) -> RelocationServer:
        """Open the listeners.

        Raises:
            RelocationError: one cannot be opened; none is then.
        """
        self._listeners.open(self._settings)
        self._acceptor.start(self._listeners)
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
            self._audit.close()
            for idle in (self._workers, self._greeters):  # every task has awaited its own
                idle.shutdown(wait=False)

    @property
    def port(self) -> int:
        """The plain TCP port that is listened on; 0 without one."""
        return self._listeners.port

    @property
    def tls_port(self) -> int:
        """The TLS port that is listened on; 0 without one."""
        return self._listeners.tls_port

    def update(self, settings: RelocationSettings, operations: Operations) -> None:
        """Apply rules, limits and operations to peers that come from here on."""
        old = self._settings
        if places(old) != places(settings):
            log.warning("another relocation address or port takes effect at the next start")
        if self.tls_port and settings.tls is None:
            log.warning("%s: port %d takes nobody until the next start", TLS_OFF, self.tls_port)
        self._settings = settings
        self._operations = operations

    async def drain(self, deadline_s: float | None, *, arrive: bool = False) -> None:
        """Stop accepting, end what can be ended without harm, and wait for every worker.

        A guest that is being handed over has `deadline_s` seconds to finish, with `arrive` every
        guest on its way has; a second call, or the deadline, cuts it: what has come is kept.
        None = as long as it takes.
        """
        self._drains += 1
        await self._acceptor.stop()
        self._listeners.close()
        for task, peer in list(self._peers.items()):
            incoming = peer.incoming
            if self._drains > 1 or incoming is None or not (arrive or incoming.ending):
                _abort(task, peer)
        if self._peers and deadline_s != 0:
            await asyncio.wait(list(self._peers), timeout=deadline_s)
        for task, peer in list(self._peers.items()):
            _abort(task, peer)
        if self._peers:
            await asyncio.wait(list(self._peers))

    def _take(self, listener: socket.socket, sock: socket.socket, address: Any) -> None:
        sock.setblocking(False)
        if listener.family == socket.AF_UNIX:
            self._welcome(Peer(sock, "", "the local socket"))
            return
        peer = Peer(sock, address[0], f"{address[0]}:{address[1]}")
        if self._listeners.is_tls(listener):
            peer.tls = self._current_tls()
            if peer.tls is None:  # its clients were told of TLS: nothing else is spoken here
                self._turn_away(peer, Refusal.TLS, TLS_OFF)
                return
        self._welcome(peer)

    def _current_tls(self) -> TlsServer | None:
        tls = self._settings.tls
        if tls is not None and (fresh := tls.current()) is not tls:
            tls = fresh
            self._settings = replace(self._settings, tls=tls)
        return tls

    def _turn_away(self, peer: Peer, kind: Refusal, reason: str) -> None:
        peer.sock.close()
        if self._refused(peer, kind, reason):
            log.warning("closed the connection of %s: %s", peer.label, reason)

    def _welcome(self, peer: Peer) -> None:
        settings = self._settings
        reason = self._counts.enter(
            peer.address,
            max_total=settings.max_connections,
            max_per_peer=settings.max_connections_per_peer,
        )
        if reason:
            self._turn_away(peer, Refusal.CONNECTIONS, reason)
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
            request = await self._greet(peer)
            if request is not None:
                await self._operate(peer, request)
        except (TimeoutError, ChannelTimeout):
            reason = f"no operation within {self._settings.control_timeout_s:g} s"
            if self._refused(peer, Refusal.TIMEOUT, reason):
                log.info("closed the connection of %s: %s", peer.label, reason)
        except PeerRefused as error:
            name = f" ({error.peer})" if error.peer else ""
            kind = Refusal(error.rule)
            if self._refused(peer, kind, error.reason, error.peer):
                log.warning("Rejected connection from %s%s: %s", peer.address, name, error.reason)
        except (OSError, ChannelError) as error:
            log.debug("the connection of %s broke: %s", peer.label, error)
        except Exception:
            log.exception("the connection of %s ended by a fault of this daemon", peer.label)

    async def _greet(self, peer: Peer) -> Receive | None:
        """Let the peer in, and return what it asks for; None if it goes instead.

        Raises:
            PeerRefused: it may not come in.
            TimeoutError: it asks for nothing.
        """
        settings = self._settings
        admission = await admit(peer, settings, self._names)
        # A name in a certificate that the CA vouches for may still let it in.
        if not admission.allowed and not (peer.tls and peer.tls.verifies):
            raise turned_away(admission.name, settings.hosts_allow)
        if peer.tls is None:
            self._admitted(peer, admission)
            return await converse(peer, self._operations, settings.control_timeout_s)
        return await self._greet_over_tls(peer, peer.tls, admission)

    async def _greet_over_tls(
        self, peer: Peer, tls: TlsServer, admission: Admission
    ) -> Receive | None:
        settings = self._settings
        until_s = time.monotonic() + settings.control_timeout_s
        if not await greeted(peer.sock, settings.control_timeout_s):
            return None
        secured = wrap(peer.sock, tls.context)  # shakes no hands yet: that is the worker's
        peer.sock = secured
        greeting = Greeting(
            sock=secured,
            peer=peer.label,
            ops=tuple(self._operations),
            until_s=until_s,
            verifies=tls.verifies,
            admission=admission,
            hosts_allow=settings.hosts_allow,
            admitted=lambda name, rule: self._admitted(peer, Admission(True, rule, name)),
        )
        return await in_worker(self._greeters, greeting.run, greeting.abort)

    def _admitted(self, peer: Peer, admission: Admission) -> None:
        version = peer.sock.version() if isinstance(peer.sock, ssl.SSLSocket) else ""
        self._audit.admitted(
            peer.label, rule=admission.rule, name=admission.name, tls=version or ""
        )

    def _refused(self, peer: Peer, kind: Refusal, reason: str, name: str = "") -> bool:
        """Write the audit line; False if this was said of that address a moment ago."""
        key = self._audit.refused(peer.label, kind, reason, name=name)
        if key is not None:
            asyncio.get_running_loop().call_later(REPEATS_S, self._audit.repeated, key)
        return key is not None

    def _name_of(self, address: str) -> str:
        if self._settings.forward_confirm:
            return confirmed_name(address, self._resolve, self._confirm)
        return self._resolve(address)

    async def _operate(self, peer: Peer, request: Receive) -> None:
        others = [peer.incoming for peer in self._peers.values() if peer.incoming is not None]
        running = sum(other.is_migration for other in others)
        limit = min(self._settings.max_incoming, MAX_WORKERS)
        operation = self._operations.get(request.op)
        # A connection more of a migration that is counted, and a question, need no room of it.
        if operation is None or (brings_guest(request) and running >= limit):
            text = f"{running} migrations are coming in, at most {limit} are taken"
            self._refused(peer, Refusal.INCOMING, text)
            await self._refuse(peer, text)
            return
        incoming = self._incoming(peer, request)
        peer.incoming = incoming
        self._events.began(incoming)
        try:
            await in_worker(
                self._workers,
                lambda: _run(operation, incoming),
                lambda: incoming.abort("shutdown"),
            )
        finally:
            self._events.ended(incoming)

    async def _refuse(self, peer: Peer, text: str) -> None:
        if peer.tls is None:
            await refuse(peer, text)
            return
        log.warning("refused %s: %s", peer.label, text)
        channel = self._channel(peer, b"")
        await in_worker(self._greeters, lambda: refuse_channel(channel, text), channel.abort)

    def _incoming(self, peer: Peer, request: Receive) -> Incoming:
        if peer.address:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        channel = self._channel(peer, request.leftover)
        return Incoming(channel, request, start(new_id(), peer.label))

    def _channel(self, peer: Peer, prefix: bytes) -> Channel:
        peer.sock.setblocking(True)
        stall_s = self._settings.stall_timeout_s
        return Channel(peer.sock, peer=peer.label, prefix=prefix, stall_timeout_s=stall_s)


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
