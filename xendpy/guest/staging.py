"""Memory for pages on their way through."""

from __future__ import annotations

from collections.abc import Sequence

from xendpy.guest.pages import PAGE_SHIFT, PageBatch


class Staging:
    """Memory for one batch at a time, handed out again for the next."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def room(self, nr_pages: int) -> memoryview:
        """Return one view as long as `nr_pages`, valid until the next call."""
        need = nr_pages << PAGE_SHIFT
        if need > len(self._buffer):
            self._buffer = bytearray(need)
        return memoryview(self._buffer)[:need]

    def view(self, batch: PageBatch) -> Sequence[memoryview]:
        """Return one view as long as the batch's pages, if any; valid until the next call."""
        count = len(batch.with_data())
        return [self.room(count)] if count else []
