"""Running what blocks in a worker thread, which is never abandoned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def in_worker(
    pool: ThreadPoolExecutor, call: Callable[[], T], abort: Callable[[], None]
) -> T:
    """Run `call` in a worker; a cancelled task aborts it, and still waits for it."""
    worker = asyncio.get_running_loop().run_in_executor(pool, call)
    cancelled = False
    while not worker.done():
        try:
            await asyncio.wait([worker])
        except asyncio.CancelledError:
            abort()
            cancelled = True
    if cancelled:
        worker.exception()
        raise asyncio.CancelledError
    return worker.result()
