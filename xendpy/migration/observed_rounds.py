"""The iterations of a guest that a toolstack sends while it runs, told from the pages themselves.

libxc's stream does not mark them; each goes through the pfns in ascending order, and the last one
leaves when the guest stands still (xc_sr_save.c, Xen 4.6 and later).
"""

from __future__ import annotations

from collections.abc import Callable

from xendpy.guest.pages import Pfns
from xendpy.guest.rounds import RoundCounter
from xendpy.migration.progress import Round


class ObservedRounds:
    """Tells `done` of each iteration when the next one begins, and of the last at `end`.

    Two iterations of which the second lies wholly above the first look like one.
    """

    def __init__(self, clock: Callable[[], float], done: Callable[[Round], None]) -> None:
        self._clock = clock
        self._done = done
        self._counter = RoundCounter()
        self._index = 0
        self._pages = 0
        self._began_s = self._sent_s = clock()

    def begin(self, pfns: Pfns) -> None:
        """Take note of pages that are about to be sent, in their order."""
        if not len(pfns):
            return
        before = self._counter.rounds
        self._counter.add(pfns)
        if not before:
            self._began_s = self._clock()
        elif self._counter.rounds > before:
            self._tell(last=False)
            self._index, self._pages, self._began_s = self._index + 1, 0, self._sent_s

    def sent(self, nr_pages: int) -> None:
        """Those pages have gone."""
        self._pages += nr_pages
        if nr_pages:
            self._sent_s = self._clock()

    def end(self) -> None:
        """There are no more pages. A single iteration is not told of: it was not the last one."""
        if self._counter.rounds > 1:
            self._tell(last=True)

    def _tell(self, *, last: bool) -> None:
        self._done(
            Round(
                index=self._index,
                sent_pages=self._pages,
                dirtied_pages=0 if last else None,
                seconds=max(self._sent_s - self._began_s, 1e-6),
                last=last,
            )
        )
