import numpy as np
import pytest

from xendpy.guest.pages import (
    HAS_DATA,
    KNOWN,
    POPULATED,
    DirtyBitmap,
    PageBatch,
    PageType,
    runs,
)

# domctl.h XEN_DOMCTL_PFINFO_*, and what xc_domain_restore.c does with each.
TABLE = [
    # type, carries data, exists, is known
    (0x0, True, True, True),
    (0x1, True, True, True),
    (0x2, True, True, True),
    (0x3, True, True, True),
    (0x4, True, True, True),
    (0x5, False, False, False),
    (0x6, False, False, False),
    (0x7, False, False, False),
    (0x8, True, True, True),
    (0x9, True, True, True),
    (0xA, True, True, True),
    (0xB, True, True, True),
    (0xC, True, True, True),
    (0xD, False, True, True),
    (0xE, False, True, True),
    (0xF, False, False, True),
]


def u64(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


@pytest.mark.parametrize(("value", "data", "exists", "known"), TABLE)
def test_table_of_types(value, data, exists, known):
    assert (bool(HAS_DATA[value]), bool(POPULATED[value]), bool(KNOWN[value])) == (
        data,
        exists,
        known,
    )


RUNS = [
    ("none", u64(), [], []),
    ("one", u64(7), [7], [1]),
    ("neighbours", u64(3, 4, 5), [3], [3]),
    ("gap", u64(3, 4, 9), [3, 9], [2, 1]),
    ("descending", u64(5, 4, 3), [5, 4, 3], [1, 1, 1]),
    ("again", u64(3, 4, 3, 4), [3, 3], [2, 2]),
    ("end of the legacy range", u64((1 << 28) - 2, (1 << 28) - 1), [(1 << 28) - 2], [2]),
]


@pytest.mark.parametrize(
    ("pfns", "starts", "counts"), [row[1:] for row in RUNS], ids=[row[0] for row in RUNS]
)
def test_runs_are_neighbours_in_the_order_given(pfns, starts, counts):
    got_starts, got_counts = runs(pfns)
    assert got_starts.tolist() == starts
    assert got_counts.tolist() == counts


def test_only_frames_with_data_have_bytes_in_the_stream():
    types = np.array([PageType.NOTAB, PageType.XTAB, PageType.L1TAB, PageType.XALLOC], np.uint8)
    assert PageBatch(u64(1, 2, 3, 4), types).with_data().tolist() == [1, 3]


def test_bitmap_marks_merges_and_counts():
    bitmap = DirtyBitmap.of(100, u64(3, 99))
    bitmap.merge(DirtyBitmap.of(100, u64(3, 50)))
    assert bitmap.count == 3
    assert bitmap.pfns().tolist() == [3, 50, 99]


def test_bitmap_batches_are_ascending_and_bounded():
    bitmap = DirtyBitmap.of(5000, np.arange(100, 2600, dtype=np.uint64))
    batches = list(bitmap.batches())
    assert [len(batch) for batch in batches] == [1024, 1024, 452]
    assert np.concatenate(batches).tolist() == list(range(100, 2600))
