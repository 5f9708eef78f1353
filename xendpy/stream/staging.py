"""Memory for pages on their way through."""

from __future__ import annotations

from collections.abc import Sequence

from xendpy.guest.pages import PAGE_SIZE, PageBatch


class Staging:
    """Memory for one batch at a time, handed out again for the next."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def view(self, batch: PageBatch) -> Sequence[memoryview]:
        """Return one view as long as the batch's pages, valid until the next call."""
        need = len(batch.with_data()) * PAGE_SIZE
        if need > len(self._buffer):
            self._buffer = bytearray(need)
        return [memoryview(self._buffer)[:need]] if need else []
