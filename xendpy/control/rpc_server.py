"""Where XML-RPC is spoken: the unix socket that `xm` uses, and TCP 8006 if it is asked for.

The unix socket lies in a directory of mode 0700, and only root and the daemon's own user are
answered. xend's TCP port asked nobody who he is: here hosts-allow decides, as on the relocation
port, and before a hand is shaken. Each listener has a count of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from xendpy.control import http
from xendpy.control.closing import closed
from xendpy.control.xmlrpc import Dispatcher
from xendpy.relocation.admission import Counts, Muffler, Names, full_name
from xendpy.relocation.hosts import HostsAllow
from xendpy.relocation.listen import listen_tcp, listen_unix, remove_unix
from xendpy.relocation.server_accept import Acceptor

MAX_CONNECTIONS = 128  # of each listener: whoever comes over TCP takes nothing from xm
MAX_PER_PEER = 32
NAME_DEADLINE_S = 5.0
HANDSHAKE_S = 10.0
_ROOT = 0
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7) SO_PEERCRED

log = logging.getLogger(__name__)

Admit = Callable[[socket.socket], Awaitable[bool]]


class RpcServer:
    """The XML-RPC listeners; entering opens none, leaving closes all and ends every call."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        limits: http.Limits = http.Limits(),  # noqa: B008  (frozen)
        resolve: Callable[[str], str] = full_name,
    ) -> None:
        self._dispatcher = dispatcher
        self._limits = limits
        self._names = Names(resolve)
        self._listeners: list[tuple[Acceptor, socket.socket]] = []
        self._bare: set[socket.socket] = set()  # connections that no transport owns yet
        self._muffler = Muffler()
        self._unix_paths: list[Path] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self.hosts_allow = HostsAllow((), ())

    async def __aenter__(self) -> RpcServer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.drain(0)
        self._names.close()

    async def listen_unix(self, path: Path) -> None:
        """Listen at `path`; a socket that nobody answers at is replaced.

        Raises:
            RelocationError: another daemon listens there, or the path cannot be used.
        """
        sock = listen_unix(path)
        self._unix_paths.append(path)
        self._listen(sock, _same_user)
        log.info("Opening Unix domain socket XML-RPC server on %s.", path)

    async def listen_tcp(
        self, address: str, port: int, hosts_allow: HostsAllow, tls: ssl.SSLContext | None = None
    ) -> int:
        """Listen on TCP for the hosts that `hosts_allow` lets in; return the port.

        Raises:
            RelocationError: the port is taken, or the address not ours.
        """
        self.hosts_allow = hosts_allow
        sock = listen_tcp(address, port)
        host, port = sock.getsockname()[:2]
        if not hosts_allow.patterns and not host.startswith("127."):
            log.warning(
                "xend-relocation-hosts-allow is empty: every host that reaches %s:%d rules here",
                *(host, port),
            )
        self._listen(sock, self._allowed_host, tls)
        log.info(
            "Opening %s XML-RPC server on %s:%d.", "HTTPS" if tls else "TCP", address or "*", port
        )
        return int(port)

    async def drain(self, deadline_s: float) -> None:
        """Accept nobody any more, give calls under way `deadline_s` seconds, then end them."""
        await self._stop_listening()
        for task in self._tasks - self._busy:
            task.cancel()
        if self._busy and deadline_s > 0:
            await asyncio.wait(self._busy, timeout=deadline_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _stop_listening(self) -> None:
        for acceptor, sock in self._listeners:
            await acceptor.stop()
            sock.close()
        for path in self._unix_paths:
            remove_unix(path)
        self._listeners.clear()
        self._unix_paths.clear()

    def _listen(
        self, sock: socket.socket, admit: Admit, tls: ssl.SSLContext | None = None
    ) -> None:
        counts = Counts()

        def take(_: socket.socket, connection: socket.socket, address: Any) -> None:
            peer = "" if sock.family == socket.AF_UNIX else str(address[0])
            reason = counts.enter(peer, max_total=MAX_CONNECTIONS, max_per_peer=MAX_PER_PEER)
            if reason:
                connection.close()
                self._refused(reason)
                return
            connection.setblocking(False)
            self._bare.add(connection)
            task = asyncio.ensure_future(self._serve(connection, admit, tls))
            self._tasks.add(task)
            task.add_done_callback(lambda task: self._ended(task, connection))
            task.add_done_callback(lambda _: counts.leave(peer))

        acceptor = Acceptor(take)
        acceptor.start([sock])
        self._listeners.append((acceptor, sock))

    def _refused(self, reason: str) -> None:
        muffled = self._muffler.due(asyncio.get_running_loop().time())
        if muffled is not None:
            more = f" ({muffled} more like this)" if muffled else ""
            log.warning("XML-RPC connection refused: %s%s", reason, more)

    def _ended(self, task: asyncio.Task[None], connection: socket.socket) -> None:
        # Here and not in the task: one that is cancelled before it began runs none of its lines.
        self._tasks.discard(task)
        if connection in self._bare:
            self._bare.discard(connection)
            connection.close()

    async def _serve(
        self, connection: socket.socket, admit: Admit, tls: ssl.SSLContext | None
    ) -> None:
        try:
            if not await admit(connection):
                return
            reader, writer = await self._streams(connection, tls)
        except OSError as error:
            log.debug("XML-RPC connection ended: %s", error)
            return
        await http.serve(reader, writer, self._answer, limits=self._limits)
        await closed(writer)

    async def _streams(
        self, connection: socket.socket, tls: ssl.SSLContext | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the connection as streams, over TLS once hands are shaken."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=http.MAX_LINE, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_S if tls else None,
        )
        self._bare.discard(connection)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _answer(self, body: bytes) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            return await self._dispatcher.answer(body)
        finally:
            self._busy.discard(task)

    async def _allowed_host(self, connection: socket.socket) -> bool:
        address = str(connection.getpeername()[0])
        rule = self.hosts_allow.match_address(address)
        if rule is not None:
            return True
        name = address
        try:
            wanted = asyncio.wrap_future(self._names.look_up(address))
            name = await asyncio.wait_for(asyncio.shield(wanted), NAME_DEADLINE_S)
        except (TimeoutError, OSError, UnicodeError) as error:
            log.debug("no name for %s: %s", address, error)
        if self.hosts_allow.decide(address, name).allowed:
            return True
        log.warning("Rejected XML-RPC connection from %s (%s)", address, name)
        return False


async def _same_user(connection: socket.socket) -> bool:
    """Let root and our own user in, whatever the modes of the directories above say."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(data)
    if uid in (_ROOT, os.geteuid()):
        return True
    log.warning("Rejected XML-RPC connection of process %d, user %d", pid, uid)
    return False
