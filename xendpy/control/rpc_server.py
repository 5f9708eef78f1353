"""Where XML-RPC is spoken: the unix socket that `xm` uses, and TCP 8006 if it is asked for.

The unix socket lies in a directory of mode 0700, and only root and the daemon's own user are
answered. xend's TCP port asked nobody who he is: here hosts-allow decides, as on the relocation
port.
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

from xendpy.control import http
from xendpy.control.xmlrpc import Dispatcher
from xendpy.relocation.admission import Names, full_name
from xendpy.relocation.hosts import HostsAllow
from xendpy.relocation.listen import listen_tcp, listen_unix, remove_unix

MAX_CONNECTIONS = 128  # on all listeners together
NAME_DEADLINE_S = 5.0
_ROOT = 0
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7) SO_PEERCRED

log = logging.getLogger(__name__)

Admit = Callable[[asyncio.StreamWriter], Awaitable[bool]]


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
        self._servers: list[asyncio.Server] = []
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
        await self._listen(sock, _same_user)
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
        await self._listen(sock, self._allowed_host, tls)
        log.info(
            "Opening %s XML-RPC server on %s:%d.", "HTTPS" if tls else "TCP", address or "*", port
        )
        return int(port)

    async def drain(self, deadline_s: float) -> None:
        """Accept nobody any more, give calls under way `deadline_s` seconds, then end them."""
        self._stop_listening()
        for task in self._tasks - self._busy:
            task.cancel()
        if self._busy and deadline_s > 0:
            await asyncio.wait(self._busy, timeout=deadline_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        for path in self._unix_paths:
            remove_unix(path)
        self._servers.clear()
        self._unix_paths.clear()

    async def _listen(
        self, sock: socket.socket, admit: Admit, tls: ssl.SSLContext | None = None
    ) -> None:
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # A task of ours and not asyncio's own: leaving the server waits for it.
            task = asyncio.ensure_future(self._serve(reader, writer, admit))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        if sock.family == socket.AF_UNIX:
            server = await asyncio.start_unix_server(connected, sock=sock, limit=http.MAX_LINE)
        else:
            server = await asyncio.start_server(connected, sock=sock, limit=http.MAX_LINE, ssl=tls)
        self._servers.append(server)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, admit: Admit
    ) -> None:
        try:
            if len(self._tasks) > MAX_CONNECTIONS:
                log.warning("XML-RPC connection refused: %d are open", MAX_CONNECTIONS)
            elif await admit(writer):
                await http.serve(reader, writer, self._answer, limits=self._limits)
        finally:
            writer.close()

    async def _answer(self, body: bytes) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            return await self._dispatcher.answer(body)
        finally:
            self._busy.discard(task)

    async def _allowed_host(self, writer: asyncio.StreamWriter) -> bool:
        address = str(writer.get_extra_info("peername")[0])
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


async def _same_user(writer: asyncio.StreamWriter) -> bool:
    """Let root and our own user in, whatever the modes of the directories above say."""
    sock = writer.get_extra_info("socket")
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(data)
    if uid in (_ROOT, os.geteuid()):
        return True
    log.warning("Rejected XML-RPC connection of process %d, user %d", pid, uid)
    return False
