"""A client of libvirt's RPC."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from xendpy.control.libvirt.wire import HEADER, LENGTH, REMOTE_PROGRAM, Packet, Status, Type
from xendpy.control.libvirt.xdr import Writer

DEADLINE_S = 120.0
OPEN = 1


@dataclass
class Client:
    """A client that need not keep to the rules."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    serial: int = 0

    @classmethod
    async def connect(cls, directory: Path, name: str = "virtxend-sock") -> Client:
        return cls(*await asyncio.open_unix_connection(directory / name))

    async def opened(self) -> Client:
        answer = await self.call(OPEN, Writer().opt_string(None).u32(0).data())
        assert answer.status == Status.OK
        return self

    def send(self, packet: Packet) -> None:
        self.writer.write(packet.encode())

    def begin(self, procedure: int, body: bytes = b"") -> None:
        self.serial += 1
        self.send(Packet(REMOTE_PROGRAM, 1, procedure, Type.CALL, self.serial, Status.OK, body))

    async def receive(self) -> Packet:
        async with asyncio.timeout(DEADLINE_S):
            (length,) = LENGTH.unpack(await self.reader.readexactly(LENGTH.size))
            data = await self.reader.readexactly(length - LENGTH.size)
        return Packet(*HEADER.unpack_from(data), data[HEADER.size :])

    async def call(self, procedure: int, body: bytes = b"") -> Packet:
        """Call, and return the answer; events are passed over."""
        self.begin(procedure, body)
        while (answer := await self.receive()).type == Type.MESSAGE:
            pass
        assert (answer.type, answer.serial) == (Type.REPLY, self.serial)
        assert answer.procedure == procedure
        return answer

    async def ended(self) -> bool:
        """Wait for the server to end the connection; False if it says something first."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    def close(self) -> None:
        self.writer.close()
