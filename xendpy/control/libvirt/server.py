"""Where libvirt's clients find the daemon: unix sockets, and TCP 16509 if it is asked for.

Sockets: libvirt's src/remote/remote_sockets.c: `virsh -c xen` looks for virtxend-sock, then for
libvirt-sock. Whoever may open the first kind rules here, which the file's mode decides; the -ro
ones are for everybody, to look.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from xendpy.control.closing import closed
from xendpy.control.libvirt import (
    domain_calls,
    hardware_calls,
    host_calls,
    looking_calls,
    migrate_calls,
    saved_calls,
    storage_calls,
    xml_calls,
)
from xendpy.control.libvirt.session import Host, Procedure, Session
from xendpy.errors import RelocationError
from xendpy.relocation.admission import Names, confirmed_name
from xendpy.relocation.hosts import HostsAllow
from xendpy.relocation.listen import listen_tcp, listen_unix, remove_unix

MAX_CLIENTS = 128  # of each listener: those who may only look take nothing from the others
NAME_DEADLINE_S = 5.0
GROUP = "libvirt"
MODE, MODE_OWNER, MODE_RO = 0o660, 0o600, 0o666

log = logging.getLogger(__name__)

Admit = Callable[[asyncio.StreamWriter], Awaitable[bool]]

TABLE: Mapping[int, Procedure] = {
    **host_calls.TABLE,
    **domain_calls.TABLE,
    **looking_calls.TABLE,
    **xml_calls.TABLE,
    **hardware_calls.TABLE,
    **saved_calls.TABLE,
    **migrate_calls.TABLE,
    **storage_calls.TABLE,
}


class LibvirtServer:
    """The listeners; entering opens none, leaving closes all and ends every call."""

    def __init__(self, host: Host, *, resolve: Callable[[str], str] = confirmed_name) -> None:
        self._host = host
        self._names = Names(resolve)
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []
        self._clients: set[asyncio.Task[None]] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self.hosts_allow = HostsAllow((), ())

    async def __aenter__(self) -> LibvirtServer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.drain(0)
        self._names.close()

    async def listen_unix(self, directory: Path) -> None:
        """Listen on virtxend-sock, and on libvirt-sock where nobody else does.

        A host on which that cannot be done is served all the same, without virsh: that is only
        said in the log.
        """
        for name in ("virtxend-sock", "libvirt-sock"):
            try:
                await self._listen_unix(directory / name, may_write=True)
                await self._listen_unix(directory / f"{name}-ro", may_write=False)
            except RelocationError as error:
                level = logging.WARNING if name == "virtxend-sock" else logging.INFO
                log.log(level, "virsh is not served there: %s", error)

    async def _listen_unix(self, path: Path, *, may_write: bool) -> None:
        sock = listen_unix(path, private=False)
        self._paths.append(path)
        try:
            _open_to(path, may_write=may_write)
        except OSError as error:
            sock.close()
            reason = (error.strerror or str(error)).lower()
            raise RelocationError(f"cannot listen on {path}: {reason}") from error
        await self._listen(sock, _everybody, may_write=may_write)
        log.info("serving virsh on %s", path)

    async def listen_tcp(self, address: str, port: int, hosts_allow: HostsAllow) -> int:
        """Listen on TCP for the hosts that `hosts_allow` lets in; return the port.

        Raises:
            RelocationError: the port is taken, or the address not ours.
        """
        self.hosts_allow = hosts_allow
        sock = listen_tcp(address, port)
        port = int(sock.getsockname()[1])
        await self._listen(sock, self._allowed_host, may_write=True)
        log.info("serving virsh on %s:%d", address or "*", port)
        return port

    async def drain(self, deadline_s: float) -> None:
        """Accept nobody any more, give calls under way `deadline_s` seconds, then end them."""
        for server in self._servers:
            server.close()
        for path in self._paths:
            remove_unix(path)
        self._servers.clear()
        self._paths.clear()
        if self._calls and deadline_s > 0:
            await asyncio.wait(self._calls, timeout=deadline_s)
        tasks = self._calls | self._clients
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _listen(self, sock: socket.socket, admit: Admit, *, may_write: bool) -> None:
        clients: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(clients) >= MAX_CLIENTS:
                log.warning("libvirt client turned away: %d are here", MAX_CLIENTS)
                writer.transport.abort()
                return
            # A task of ours and not asyncio's own: leaving the server waits for it.
            task = asyncio.ensure_future(self._serve(reader, writer, admit, may_write=may_write))
            for kept in (clients, self._clients):
                kept.add(task)
                task.add_done_callback(kept.discard)

        if sock.family == socket.AF_UNIX:
            server = await asyncio.start_unix_server(connected, sock=sock)
        else:
            server = await asyncio.start_server(connected, sock=sock)
        self._servers.append(server)

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        admit: Admit,
        *,
        may_write: bool,
    ) -> None:
        session = Session(
            host=self._host,
            table=TABLE,
            reader=reader,
            writer=writer,
            begin=self._begin,
            read_only=not may_write,
            local_address=_local_address(writer),
        )
        try:
            if await admit(writer):
                await session.serve()
        finally:
            writer.close()  # who is cancelled does not wait
        await closed(writer)

    async def _allowed_host(self, writer: asyncio.StreamWriter) -> bool:
        address = str(writer.get_extra_info("peername")[0])
        if self.hosts_allow.match_address(address) is not None:
            return True
        name = address
        try:
            wanted = asyncio.wrap_future(self._names.look_up(address))
            name = await asyncio.wait_for(asyncio.shield(wanted), NAME_DEADLINE_S)
        except (TimeoutError, OSError, UnicodeError) as error:
            log.debug("no name for %s: %s", address, error)
        if self.hosts_allow.decide(address, name).allowed:
            return True
        log.warning("Rejected libvirt connection from %s (%s)", address, name)
        return False

    def _begin(self, task: asyncio.Task[None]) -> None:
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)


async def _everybody(_: asyncio.StreamWriter) -> bool:
    """Let in who could open the socket's file: its mode has decided."""
    return True


def _open_to(path: Path, *, may_write: bool) -> None:
    """Give a socket's file to those who may connect: root and the group libvirt, or everybody."""
    if not may_write:
        path.chmod(MODE_RO)
        return
    path.chmod(MODE_OWNER)
    with suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
        path.chmod(MODE)


def _local_address(writer: asyncio.StreamWriter) -> str:
    """Return the IPv4 address that a TCP client came to, empty for another kind of client."""
    sock = writer.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_INET:
        return ""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return str(writer.get_extra_info("sockname")[0])
