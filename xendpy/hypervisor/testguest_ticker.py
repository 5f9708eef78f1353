"""What a test guest does: it logs, it dirties pages, and it can tell whether its memory is whole.

Everything it knows lives in its memory. Each heap page that it writes carries its own frame
number, a sequence number, and a pattern that follows from both; the sequence numbers are kept a
second time in pages of their own. A page that was lost, is stale or torn therefore shows.
"""

from __future__ import annotations

import threading
import time

import numpy as np
from numpy.typing import NDArray

from xendpy.guest.pages import PAGE_SIZE
from xendpy.hypervisor import testguest_layout as layout

# 128 pages took 0.4 ms, 2.3 ms where the host gave the memory for the first time.
SLICE_PAGES = 128
SLICE_S = 0.005  # a slow writer wakes this often
MAX_CREDIT_S = 0.05  # what a guest that was kept from running may catch up with

_barrier = threading.Lock()


def fence() -> None:
    """Order this thread's earlier memory accesses before its later ones.

    A locked instruction, which taking a mutex is, is a full barrier on x86 and more than enough
    elsewhere.
    """
    with _barrier:
        pass


class Ticker:
    """The guest's one activity, over its memory and its dirty map.

    Between two calls of a method the memory is coherent: a guest stopped there goes on, here or
    elsewhere, where it was. The dirty map is uint8[nr_pages]. The guest stores a page and then
    marks it; the driver clears marks that it saw and then reads the pages. So a page changed
    after the driver's look is marked after the driver's clearing, and is looked at again; a mark
    that falls between seeing and clearing belongs to a store that the look then sees.
    """

    def __init__(self, ram: layout.Ram, dirty: NDArray[np.uint8], *, host_name: str) -> None:
        self.layout = layout.read_layout(ram)
        self.ram = ram
        self.dirty = dirty
        self.host_name = host_name
        self.state = layout.view_state(ram)
        self._sequences = layout.view_sequences(ram)
        self._heap = ram[self.layout.heap_first :].view(np.uint64)
        self._pattern = _mix(np.arange(layout.ENTRIES, dtype=np.uint64))
        ring = ram[self.layout.log_first : self.layout.sequence_first]
        self._ring = ring.reshape(-1)

        self._born = False

    def fill(self) -> None:
        """Give every heap page its first contents."""
        for first in range(0, self.layout.heap_pages, SLICE_PAGES):
            self._write(first, min(SLICE_PAGES, self.layout.heap_pages - first))

    def advance(self, elapsed_s: float) -> float:
        """Do what is due after `elapsed_s` more seconds of running; return when to come again.

        Takes less than 5 ms.
        """
        began = time.perf_counter()
        state = self.state
        # Counted here and not at the start: memory that has not run yet is what was received.
        state["incarnation"] += not self._born
        self._born = True
        state["running_s"] += elapsed_s
        state["since_tick_s"] += elapsed_s
        if state["since_tick_s"] >= state["tick_s"]:
            self._tick()
        wait_s = float(state["tick_s"] - state["since_tick_s"])
        if state["dirty_rate"] > 0:
            wait_s = min(wait_s, self._dirty_some(elapsed_s))
        state["cpu_s"] += time.perf_counter() - began
        self._mark(layout.STATE_PFN, 1)
        return max(wait_s, 0.0)

    def _tick(self) -> None:
        """Log one line; ticks that were slept through are not made up for."""
        state = self.state
        state["since_tick_s"] %= state["tick_s"]
        state["ticks"] += np.uint64(1)
        self.log(f"{self.host_name} {_date(time.time())} #{int(state['ticks'])}")

    def log(self, text: str) -> None:
        """Append one line, cut at MAX_LINE bytes, to the ring."""
        line = np.frombuffer(text.encode()[: layout.MAX_LINE - 1] + b"\n", np.uint8)
        end = int(self.state["log_end"])
        places = np.arange(end, end + len(line)) % len(self._ring)
        self._ring[places] = line
        fence()
        self.state["log_end"] = end + len(line)
        fence()
        self.dirty[self.layout.log_first + places // PAGE_SIZE] = 1
        self._mark(layout.STATE_PFN, 1)

    def _dirty_some(self, elapsed_s: float) -> float:
        state = self.state
        rate, wss = float(state["dirty_rate"]), int(state["wss_pages"])
        wanted = min(SLICE_PAGES, wss, max(1, int(rate * SLICE_S)))
        limit = wanted + rate * MAX_CREDIT_S
        credit = min(float(state["credit"]) + elapsed_s * rate, limit)
        if credit >= wanted:
            cursor = int(state["cursor"])
            count = min(int(credit), SLICE_PAGES, wss - cursor)
            self._write(cursor, count)
            state["cursor"] = (cursor + count) % wss
            credit -= count
        state["credit"] = credit
        return max(0.0, (wanted - credit) / rate)

    def _write(self, first: int, count: int) -> None:
        """Give `count` heap pages from `first` on their next contents."""
        sequences = self._sequences[first : first + count]
        sequences += np.uint32(1)
        self._contents(first, sequences, self._heap[first : first + count])
        self.state["writes"] += np.uint64(count)
        self._mark(self.layout.heap_first + first, count)
        page, last = first * 4 // PAGE_SIZE, ((first + count) * 4 - 1) // PAGE_SIZE
        self._mark(self.layout.sequence_first + page, last - page + 1)

    def _contents(
        self, first: int, sequences: NDArray[np.uint32], out: NDArray[np.uint64]
    ) -> None:
        """Store into `out`, uint64[n, 512], what heap pages hold at these sequence numbers."""
        pfns = np.arange(len(sequences), dtype=np.uint64) + np.uint64(
            self.layout.heap_first + first
        )
        wide = sequences.astype(np.uint64)
        np.add(self._pattern, _mix((pfns << np.uint64(32)) ^ wide)[:, None], out=out)
        out[:, 0] = pfns
        out[:, 1] = wide

    def _mark(self, first: int, count: int) -> None:
        """Mark pages dirty, after they were written."""
        fence()
        self.dirty[first : first + count] = 1

    def check(self) -> list[str]:
        """Return what is wrong with the memory, a sentence each, at most a few; [] = whole."""
        faults = [
            f"page {pfn:#x}, which never changes, has changed"
            for pfn, page in layout.fixed_pages(self.layout).items()
            if not np.array_equal(self.ram[pfn], page)
        ]
        p2m = layout.view_p2m(self.ram)
        if not np.array_equal(p2m, np.arange(len(p2m), dtype=np.uint64)):
            faults.append("the p2m has changed")
        scratch = np.empty((SLICE_PAGES, layout.ENTRIES), np.uint64)
        for first in range(0, self.layout.heap_pages, SLICE_PAGES):
            faults += self._check_heap(first, scratch)
            if len(faults) > 10:
                break
        total = int(self._sequences.sum(dtype=np.uint64))
        if total != int(self.state["writes"]):
            faults.append(f"{int(self.state['writes'])} writes counted, sequences add to {total}")
        return faults[:10]

    def _check_heap(self, first: int, scratch: NDArray[np.uint64]) -> list[str]:
        sequences = self._sequences[first : first + SLICE_PAGES]
        # A page never written is not looked at: reading a hole of the file would fill it.
        if not sequences.any():
            return []
        expected = scratch[: len(sequences)]
        self._contents(first, sequences, expected)
        pages = self._heap[first : first + len(sequences)]
        wrong = (pages != expected).any(axis=1) & (sequences > 0)
        return [
            f"page {self.layout.heap_first + first + index:#x} carries sequence "
            f"{int(pages[index, 1])}, expected {int(sequences[index])}"
            for index in np.flatnonzero(wrong)
        ]


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the splitmix64 finalizer of each value: all bits depend on all bits."""
    mixed = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


def _date(now_s: float) -> str:
    """Return a moment as date(1) prints it, with milliseconds."""
    moment = time.localtime(now_s)
    head, zone = time.strftime("%a %b %e %H:%M:%S", moment), time.strftime("%Z %Y", moment)
    return f"{head}.{int(now_s * 1000) % 1000:03d} {zone}"
