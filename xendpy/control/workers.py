"""Threads for what blocks: a few for quick questions, others for what may take hours.

Two pools, so that `xm list` answers however many saves run. A worker is never abandoned: whoever
is cancelled tells it, and waits for it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

QUICK_THREADS = 4
LONG_THREADS = 16  # saves and restores at a time; further ones wait their turn


class Workers:
    """The two pools; `close` waits for whatever still runs."""

    def __init__(self, quick: int = QUICK_THREADS, long: int = LONG_THREADS) -> None:
        self._quick = ThreadPoolExecutor(quick, thread_name_prefix="control")
        self._long = ThreadPoolExecutor(long, thread_name_prefix="guest")

    async def quick(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call that ends by itself within moments."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._quick, functools.partial(call, *args, **kwargs))
        return await _settle(future, None)

    async def long(self, call: Callable[[], T], cancel: Callable[[], None]) -> T:
        """Run a call that may take long; `cancel`, from this thread, makes it end soon."""
        return await _settle(asyncio.get_running_loop().run_in_executor(self._long, call), cancel)

    def close(self) -> None:
        self._quick.shutdown()
        self._long.shutdown()


async def _settle(future: asyncio.Future[T], cancel: Callable[[], None] | None) -> T:
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if cancel is not None:
            cancel()
        while not future.done():
            with suppress(asyncio.CancelledError):  # the first one is raised below
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()
        raise
