"""The relocation port as an old xend's looks from outside; runs in a domain 0 of the lab.

    python -m tests.lab.old_door PORT

`help` is answered as by xend 3.3 and later, so that a sender of ours speaks xend's protocol;
everything else goes to port 8002 of this host and back.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio import StreamReader, StreamWriter

SERVED = ("127.0.0.1", 8002)
HELP = b"(ok (help quit receive sslreceive))\n"
CHUNK = 1 << 18


async def _pump(reader: StreamReader, writer: StreamWriter) -> None:
    """Pass bytes on to their end, and then the end."""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(CHUNK):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()


async def _serve(reader: StreamReader, writer: StreamWriter) -> None:
    while (line := await reader.readline()) == b"help\n":
        writer.write(HELP)
    behind, before = await asyncio.open_connection(*SERVED)
    before.write(line)
    await asyncio.gather(_pump(reader, before), _pump(behind, writer))
    for each in (before, writer):
        each.close()


async def _main(port: int) -> None:
    async with await asyncio.start_server(_serve, "0.0.0.0", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
