"""The end of a connection, also with a client who reads nothing any more."""

from __future__ import annotations

import asyncio
import logging

FLUSH_S = 30.0  # for what a client was told last and has not read

log = logging.getLogger(__name__)


async def closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and return when it is: it counts as one until then.

    What has been written is sent before, for half a minute; then the connection is dropped with
    what is left of it. Without that a client who half-closes and never reads keeps it for ever.
    """
    writer.close()
    try:
        async with asyncio.timeout(FLUSH_S):
            await writer.wait_closed()
    except TimeoutError:
        log.warning("client dropped: it has not read its answers within %g s", FLUSH_S)
        writer.transport.abort()
    except OSError:  # it has gone first
        pass
