"""One connection of a libvirt client: its calls, its keepalive, its events.

Every call is a task: a client pings every five seconds while a migration runs, asks how it stands,
and leaves after six pings without an answer. Replies may come in any order. A call that is under
way when its client goes away comes to its own end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from xendpy.control.call_log import CallLog
from xendpy.control.events import Event
from xendpy.control.guests import Guests
from xendpy.control.libvirt.absent import foreign, not_served
from xendpy.control.libvirt.layouts import check_arguments
from xendpy.control.libvirt.lifecycle import EVENT_LIFECYCLE, lifecycle_body
from xendpy.control.libvirt.pools import Pool
from xendpy.control.libvirt.reasons import Reasons
from xendpy.control.libvirt.view import View
from xendpy.control.libvirt.wire import (
    KEEPALIVE_PROGRAM,
    PING,
    PONG,
    REMOTE_PROGRAM,
    VERSION,
    Code,
    Packet,
    Type,
    message,
    read_packet,
)
from xendpy.control.libvirt.xdr import Reader, Writer
from xendpy.control.migrations import Migrations
from xendpy.control.transfers import Transfers
from xendpy.errors import (
    DomainError,
    DomainNotFound,
    DomainStateError,
    MigrationAborted,
    RpcError,
    XendError,
)
from xendpy.relocation.settings import RelocationSettings

MAX_CALLS = 32  # of one client at a time
MAX_CALLBACKS = 256
MAX_UNREAD = 8 << 20  # bytes of answers that a client may leave unread
URI = "xen:///system"
# AUTH_LIST, CONNECT_OPEN, CONNECT_CLOSE, CONNECT_SUPPORTS_FEATURE
BEFORE_OPEN = frozenset((66, 1, 2, 60))

log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[["Session", Reader], Coroutine[Any, Any, Writer]]
# The first that fits counts.
_CODES: tuple[tuple[type[XendError], Code], ...] = (
    (DomainNotFound, Code.NO_DOMAIN),
    (DomainStateError, Code.OPERATION_INVALID),
    (DomainError, Code.OPERATION_FAILED),
    (MigrationAborted, Code.OPERATION_ABORTED),
    (XendError, Code.OPERATION_FAILED),
)


@dataclass(frozen=True, slots=True)
class Procedure:
    """One procedure; `looks`: it changes nothing, and read-only connections may call it."""

    name: str
    handler: Handler
    looks: bool = False


@dataclass(slots=True, kw_only=True)
class Host:
    """What the procedures work on, and what they remember between connections.

    The three functions give the configuration's values of this moment. Downtime and speed are
    those of a guest's migrations from then on, by its uuid.
    """

    guests: Guests
    transfers: Transfers
    migrations: Migrations
    relocation: Callable[[], RelocationSettings]
    host_name: Callable[[], str]
    max_guest_memory_mib: Callable[[], int]
    pools: dict[str, Pool] = field(default_factory=dict)
    downtime_ms: dict[str, int] = field(default_factory=dict)
    speed_mib: dict[str, int] = field(default_factory=dict)
    reasons: Reasons = field(default_factory=Reasons)

    def __post_init__(self) -> None:
        self.guests.events.subscribe(self.reasons.note)


@dataclass(slots=True, kw_only=True)
class Session:
    """One client. `local_address`: where it came to over TCP, '' for a unix socket.

    `begin` keeps a task that outlives the connection.
    """

    host: Host
    table: Mapping[int, Procedure]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    begin: Callable[[asyncio.Task[None]], None]
    read_only: bool
    local_address: str = ""
    uri: str = URI
    opened: bool = False
    view: View = field(init=False)
    _calls: int = 0
    _callbacks: dict[int, str | None] = field(default_factory=dict)
    _last_callback: int = 0
    _call_log: CallLog = field(default_factory=lambda: CallLog(log, "libvirt "))

    def __post_init__(self) -> None:
        self.view = View(self.host.guests)

    @property
    def guests(self) -> Guests:
        return self.host.guests

    async def serve(self) -> None:
        """Take packets until the client goes away or sends what cannot be one."""
        unsubscribe = self.guests.events.subscribe(self._tell)
        try:
            while (packet := await read_packet(self.reader, opened=self.opened)) is not None:
                answer = self._take(packet)
                if answer is not None and not self.opened:
                    # Whether it opens the connection decides what may come next, and how late.
                    await answer
        except RpcError as error:
            log.warning("libvirt client dropped: %s", error)
        finally:
            unsubscribe()
            self._call_log.note("")

    def subscribe(self, uuid: str | None) -> int:
        """Have the client told of a guest's lifecycle, of every guest's for None.

        Raises:
            RpcError: it has too many registrations.
        """
        if len(self._callbacks) >= MAX_CALLBACKS:
            raise RpcError(Code.OPERATION_FAILED, f"more than {MAX_CALLBACKS} event callbacks")
        self._last_callback += 1
        self._callbacks[self._last_callback] = uuid
        return self._last_callback

    def unsubscribe(self, callback: int) -> None:
        """End a registration.

        Raises:
            RpcError: there is none of that number.
        """
        if callback not in self._callbacks:
            raise RpcError(Code.INVALID_ARG, f"no event callback {callback}")
        del self._callbacks[callback]

    def _tell(self, event: Event) -> None:
        self.view.forget()
        for callback, uuid in self._callbacks.items():
            body = lifecycle_body(callback, event) if uuid in (None, event.uuid) else None
            if body is not None:
                self._send(message(EVENT_LIFECYCLE, body))

    def _send(self, packet: Packet) -> None:
        """Send a packet whole; a client that does not read is dropped."""
        if self.writer.is_closing():
            return
        if self.writer.transport.get_write_buffer_size() > MAX_UNREAD:
            log.warning("libvirt client dropped: it does not read its answers")
            self.writer.transport.abort()
            return
        self.writer.write(packet.encode())

    def _take(self, packet: Packet) -> asyncio.Task[None] | None:
        """Begin what a packet asks for; return the call, if it is one that is carried out."""
        if packet.program == KEEPALIVE_PROGRAM:
            if packet.procedure == PING:
                self._send(message(PONG, b"", KEEPALIVE_PROGRAM))
            return None
        if packet.type != Type.CALL:
            log.debug("libvirt client: a packet of type %d is passed over", packet.type)
            return None
        try:
            procedure = self._procedure(packet)
        except RpcError as error:
            self._send(packet.error(error))
            return None
        self._calls += 1
        call = asyncio.ensure_future(self._answer(procedure, packet))
        self.begin(call)
        return call

    def _procedure(self, packet: Packet) -> Procedure:
        if (packet.program, packet.version) != (REMOTE_PROGRAM, VERSION):
            raise foreign(packet.program, packet.version)
        procedure = self.table.get(packet.procedure)
        if procedure is None:
            raise not_served(packet.procedure)
        if not self.opened and packet.procedure not in BEFORE_OPEN:
            raise RpcError(Code.INVALID_CONN, "the connection is not open")
        if self.read_only and not procedure.looks:
            raise RpcError(
                Code.OPERATION_DENIED,
                f"operation {procedure.name.lower()} forbidden for read only access",
            )
        if self._calls >= MAX_CALLS:
            raise RpcError(Code.OPERATION_FAILED, f"more than {MAX_CALLS} calls at a time")
        return procedure

    async def _answer(self, procedure: Procedure, packet: Packet) -> None:
        self._call_log.note(procedure.name)
        try:
            check_arguments(packet.procedure, packet.body)
            if not procedure.looks:
                self.view.forget()
            written = await procedure.handler(self, Reader(packet.body))
            reply = packet.reply(written.data())
        except XendError as error:
            log.debug("%s: %s", procedure.name, error)
            reply = packet.error(as_rpc_error(error))
        except Exception:
            log.exception("%s failed", procedure.name)
            reply = packet.error(RpcError(Code.INTERNAL_ERROR, "internal error"))
        finally:
            self._calls -= 1
            if not procedure.looks:
                self.view.forget()
        self._send(reply)


def as_rpc_error(error: XendError) -> RpcError:
    """Return what to answer with; the sentence stays word for word."""
    if isinstance(error, RpcError):
        return error
    return RpcError(next(code for kind, code in _CODES if isinstance(error, kind)), str(error))
