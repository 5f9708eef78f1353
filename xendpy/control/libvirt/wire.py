"""Packets of libvirt's RPC: a length, a header of six words, a body.

Source: libvirt's src/rpc/virnetprotocol.x (facts). The length counts itself. Replies repeat
program, version, procedure and serial; events and keepalive are messages with serial 0.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from xendpy.control.libvirt.xdr import Writer
from xendpy.errors import RpcError

LENGTH = Struct(">I")
HEADER = Struct(">IIiiIi")  # program, version, procedure, type, serial, status
# libvirt allows 32 MiB. No call that is answered here has more than a domain's XML or a list of
# domains, and what a client announces is memory of the daemon's.
MAX_PACKET = 2 << 20
MAX_OPENING = 4096  # of a client that has not opened the connection
PACKET_DEADLINE_S = 30.0  # from a packet's first byte to its last
OPENING_DEADLINE_S = 30.0  # for each packet of a client that has not opened the connection

REMOTE_PROGRAM = 0x20008086
KEEPALIVE_PROGRAM = 0x6B656570
VERSION = 1
PING, PONG = 1, 2


class Type(IntEnum):
    CALL = 0
    REPLY = 1
    MESSAGE = 2
    STREAM = 3
    CALL_WITH_FDS = 4
    REPLY_WITH_FDS = 5


class Status(IntEnum):
    OK = 0
    ERROR = 1
    CONTINUE = 2


class Code(IntEnum):
    """libvirt's error numbers that are used here. [virterror.h]"""

    INTERNAL_ERROR = 1
    NO_SUPPORT = 3
    INVALID_CONN = 6
    INVALID_ARG = 8
    OPERATION_FAILED = 9
    NO_DOMAIN = 42
    NO_STORAGE_POOL = 49
    NO_STORAGE_VOL = 50
    OPERATION_INVALID = 55
    ARGUMENT_UNSUPPORTED = 74
    OPERATION_ABORTED = 78
    OPERATION_DENIED = 29


FROM_XEN, FROM_STORAGE = 1, 18  # where an error comes from
LEVEL_ERROR = 2


@dataclass(frozen=True, slots=True)
class Packet:
    """One message; `body` is its XDR part."""

    program: int
    version: int
    procedure: int
    type: int
    serial: int
    status: int
    body: bytes

    def encode(self) -> bytes:
        """Return the bytes that cross the wire."""
        header = HEADER.pack(
            self.program, self.version, self.procedure, self.type, self.serial, self.status
        )
        return LENGTH.pack(LENGTH.size + HEADER.size + len(self.body)) + header + self.body

    def reply(self, body: bytes) -> Packet:
        """Return the answer to a call."""
        return self._answer(Status.OK, body)

    def error(self, error: RpcError) -> Packet:
        """Return the error that answers a call."""
        return self._answer(Status.ERROR, error_body(error))

    def _answer(self, status: Status, body: bytes) -> Packet:
        return Packet(
            self.program, self.version, self.procedure, Type.REPLY, self.serial, status, body
        )


def message(procedure: int, body: bytes, program: int = REMOTE_PROGRAM) -> Packet:
    """Return a packet that answers nothing: an event, or a keepalive."""
    return Packet(program, VERSION, procedure, Type.MESSAGE, 0, Status.OK, body)


def error_body(error: RpcError) -> bytes:
    """Return a `remote_error`."""
    storage = error.code in (Code.NO_STORAGE_POOL, Code.NO_STORAGE_VOL)
    writer = Writer().i32(error.code, FROM_STORAGE if storage else FROM_XEN)
    writer.opt_string(error.reason).i32(LEVEL_ERROR)
    writer.u32(0)  # no domain
    writer.opt_string("%s").opt_string(error.reason).opt_string(None)
    return writer.i32(0, 0).u32(0).data()  # int1, int2, no network


async def read_packet(reader: asyncio.StreamReader, *, opened: bool = True) -> Packet | None:
    """Return the next packet, None at the peer's end; `opened`: it may be large, and late.

    Raises:
        RpcError: a length that cannot be, or half a packet and then nothing; what follows cannot
            be read.
    """
    try:
        if opened:
            first = await reader.readexactly(1)
        else:
            async with asyncio.timeout(OPENING_DEADLINE_S):
                first = await reader.readexactly(1)
        async with asyncio.timeout(PACKET_DEADLINE_S):
            return await _rest(reader, first, MAX_PACKET if opened else MAX_OPENING)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except TimeoutError:
        raise RpcError(Code.INVALID_ARG, "no whole packet within its deadline") from None


async def _rest(reader: asyncio.StreamReader, first: bytes, limit: int) -> Packet:
    (length,) = LENGTH.unpack(first + await reader.readexactly(LENGTH.size - 1))
    if not LENGTH.size + HEADER.size <= length <= limit:
        raise RpcError(Code.INVALID_ARG, f"a packet of {length} bytes, {limit} are allowed")
    data = await reader.readexactly(length - LENGTH.size)
    program, version, procedure, kind, serial, status = HEADER.unpack_from(data)
    return Packet(program, version, procedure, kind, serial, status, data[HEADER.size :])
