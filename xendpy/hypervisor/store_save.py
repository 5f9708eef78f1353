"""A guest on its way out of the embedded store: how such a session ends, and a guest that runs.

One that rests: store_resting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from xendpy.errors import HypervisorError
from xendpy.guest.domain import DomainConfig
from xendpy.guest.pages import HAS_DATA, DirtyBitmap, PageBatch, PageType, Pfns
from xendpy.hypervisor.runner import Running
from xendpy.stream.records import End, Pages, Record

IN_DOUBT = "the connection was lost after the guest's last byte"


class StoreSession:
    """What ends a save session: exactly one of relinquish, resume and hold, once."""

    def __init__(self) -> None:
        self._chosen = False
        self._said_end = False
        self._cancelled = False

    def cancel(self) -> None:
        """Let the next call fail. Any thread."""
        self._cancelled = True

    def close(self) -> None:
        """End the session: without a choice, as the end of the stream was sent or not."""
        try:
            if not self._chosen and self._said_end:
                self.hold(IN_DOUBT)
            elif not self._chosen:
                self.resume()
        finally:
            self._release()

    def relinquish(self) -> None:
        """Destroy the local copy."""
        self._choose()
        self._relinquish()

    def resume(self) -> None:
        """Let the guest go on here, as it was before."""
        self._choose()
        self._resume()

    def hold(self, reason: str) -> None:
        """Leave the guest stopped, durably noted as in doubt."""
        self._choose()
        self._hold(reason)

    def _choose(self) -> None:
        if self._chosen:
            raise ValueError("the session was ended before")
        self._chosen = True

    def _check(self) -> None:
        if self._cancelled:
            raise HypervisorError("the guest's departure was cancelled", operation="save")

    def _relinquish(self) -> None:
        raise NotImplementedError

    def _resume(self) -> None:
        raise NotImplementedError

    def _hold(self, reason: str) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError


class RunningSource(StoreSession):
    """A PageSource over a guest that a runner executes."""

    live = True

    def __init__(self, running: Running, *, on_relinquish: Callable[[], None]) -> None:
        super().__init__()
        self.config: DomainConfig = running.config
        self._running = running
        self._on_relinquish = on_relinquish
        self._suspended = False

    @property
    def nr_pages(self) -> int:
        return len(self._running.types)

    def opening(self) -> Iterator[Record]:
        """Yield what the guest says before memory."""
        self._check()
        yield from self._running.opening()

    def present(self) -> DirtyBitmap:
        """Return the frames that exist."""
        exists = np.flatnonzero(self._running.types != PageType.XTAB)
        return DirtyBitmap.of(self.nr_pages, exists.astype(np.uint64))

    def track_dirty(self) -> None:
        """Start recording writes."""
        self._running.track_dirty()

    def take_dirty(self) -> DirtyBitmap:
        """Return the frames written since the last call."""
        return self._running.take_dirty()

    def read(self, pfns: Pfns) -> Pages:
        """Return views of the guest's own memory: torn until it is suspended, then sent again."""
        self._check()
        types = self._running.types[pfns]
        return Pages(PageBatch(pfns, types), self._running.memory.read(pfns[HAS_DATA[types]]))

    def suspend(self) -> None:
        """Stop the guest."""
        self._check()
        self._suspended = True
        self._running.suspend()

    def closing(self) -> Iterator[Record]:
        """Yield what the guest says after memory, then End."""
        self._check()
        for record in self._running.closing():
            self._said_end = isinstance(record, End)
            yield record

    def _relinquish(self) -> None:
        self._on_relinquish()

    def _resume(self) -> None:
        if self._suspended:
            self._running.resume()

    def _hold(self, reason: str) -> None:
        if not self._suspended:
            self._running.suspend()
        self._running.hold(reason)

    def _release(self) -> None:
        pass
