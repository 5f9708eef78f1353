"""Count pre-copy rounds, which a legacy stream does not mark.

Since Xen 3.3 a round goes through the pfns in ascending order: one that starts at or below the
end of the batch before begins a new round. 3.0 - 3.2 go in a permuted order, which the first
batch shows: there a pfn that already came begins a new round. (xc_domain_save.c)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xendpy.guest.pages import Pfns


class RoundCounter:
    """The number of rounds begun, told from the batches of a stream in their order.

    A permuted stream costs a byte for every pfn up to the highest; an ascending one nothing. The
    decoder bounds pfns by the guest's size, and bytes that no pfn comes near are never touched.
    """

    def __init__(self) -> None:
        self._last = -1
        self._seen: NDArray[np.bool_] | None = None  # this round's pfns, of a permuted stream
        self._ending = False
        self.rounds = 0

    @property
    def first_round_complete(self) -> bool:
        """Every page has come once: a second round began, or the sender is ending."""
        return self.rounds > 1 or self._ending

    def add(self, pfns: Pfns) -> None:
        """Take note of a batch, its pfns in stream order."""
        if not len(pfns):
            return
        if self._seen is None and len(pfns) > 1 and not (pfns[1:] > pfns[:-1]).all():
            self._seen = np.zeros(0, np.bool_)
            self.rounds = max(self.rounds, 1)
        if self._seen is None:
            self._ascending(pfns)
        else:
            self._seen = self._permuted(self._seen, pfns)

    def ending(self) -> None:
        """Take note of the first mark of the end."""
        self._ending = True

    def _ascending(self, pfns: Pfns) -> None:
        if int(pfns[0]) <= self._last or not self.rounds:
            self.rounds += 1
        self._last = int(pfns[-1])

    def _permuted(self, seen: NDArray[np.bool_], pfns: Pfns) -> NDArray[np.bool_]:
        needed = int(pfns.max()) + 1
        if needed > len(seen):
            grown = np.zeros(max(needed, 2 * len(seen)), np.bool_)
            grown[: len(seen)] = seen
            seen = grown
        if seen[pfns].any():
            self.rounds += 1
            seen = np.zeros(len(seen), np.bool_)  # not set to zeros, which would take all of it
        seen[pfns] = True
        return seen
