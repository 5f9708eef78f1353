"""Rounds told from batches."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from xendpy.guest.rounds import RoundCounter


def permuted(nr_pages: int, order: int) -> list[int]:
    """Return the pfns in the order of xc_domain_save.c 3.0 - 3.2: bits rotated by ten."""
    pfns: list[int] = []
    n = 0
    while len(pfns) < nr_pages:
        i = n
        while True:
            i = (i >> (order - 10) | i << 10) & ((1 << order) - 1)
            if i < nr_pages:
                break
        pfns.append(i)
        n += 1
    return pfns


# (id, batches, rounds)
CASES: list[tuple[str, list[list[int]], int]] = [
    ("nothing", [], 0),
    ("empty-batch", [[]], 0),
    ("one-batch", [[0, 1, 2]], 1),
    ("ascending-one-round", [[0, 1], [2, 3], [9]], 1),
    ("second-round", [[0, 1], [2, 3], [1]], 2),
    ("same-pfn-again", [[5], [5], [5]], 3),
    ("rounds-that-shrink", [[0, 1, 2], [3, 4], [0, 4], [1, 3], [2]], 4),
    ("permuted-one-round", [[0, 8, 4], [2, 6]], 1),
    ("permuted-second-round", [[0, 8, 4], [2, 6], [3, 8]], 2),
    ("permuted-below-is-no-round", [[0, 8, 4], [1], [2]], 1),
    ("permuted-grows", [[4, 0], [1000], [9000, 3]], 1),
    ("permuted-third", [[4, 0], [4], [0], [4]], 3),
]


@pytest.mark.parametrize(("batches", "rounds"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_rounds(batches: list[list[int]], rounds: int) -> None:
    counter = RoundCounter()
    for batch in batches:
        counter.add(np.array(batch, np.uint64))
    assert counter.rounds == rounds
    assert counter.first_round_complete == (rounds > 1)


def test_memory_follows_the_pfns_that_came_and_not_the_highest() -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counter = RoundCounter()
    for batch in ([1 << 30, 0], [1 << 30], [1]):
        counter.add(np.array(batch, np.uint64))
    assert counter.rounds == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 128 << 10


def test_ending_completes_the_first_round() -> None:
    counter = RoundCounter()
    counter.add(np.array([1, 2], np.uint64))
    counter.ending()
    assert counter.first_round_complete
    assert counter.rounds == 1


def test_permuted_scan_of_a_real_size() -> None:
    pfns = permuted(5000, 13)
    assert sorted(pfns) == list(range(5000))
    dirty = [pfn for pfn in pfns if pfn % 7 == 0]
    counter = RoundCounter()
    for scan in (pfns, dirty, dirty[:3]):
        assert counter.rounds == [pfns, dirty, dirty[:3]].index(scan)
        for start in range(0, len(scan), 1024):
            counter.add(np.array(scan[start : start + 1024], np.uint64))
    assert counter.rounds == 3
