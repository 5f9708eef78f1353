import numpy as np
import pytest

from tests.guests import span, u64
from xendpy.guest.pages import PageType
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.pagetypes import PageTypes


@pytest.fixture
def types(tmp_path):
    types = PageTypes.create(tmp_path / "types", Durable())
    yield types
    types.close()


def u8(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)


def test_the_last_type_of_a_frame_counts(types):
    types.update(u64(5, 3), u8(PageType.NOTAB, PageType.L1TAB))
    types.update(u64(3), u8(PageType.L2TAB_PIN))
    assert types.of(u64(3, 5)).tolist() == [PageType.L2TAB_PIN, PageType.NOTAB]
    assert types.nr_pages == 6


def test_frames_never_named_and_removed_ones_are_absent(types):
    types.update(u64(1, 2, 4), u8(0, 0, PageType.XALLOC))
    types.update(u64(2), u8(PageType.XTAB))
    types.remove(u64(4, 1 << 40))
    assert types.all().tolist() == [0xF, 0x0, 0xF, 0xF, 0xF]
    assert types.present().pfns().tolist() == [1]


def test_the_file_says_the_same_as_memory(types, tmp_path):
    types.update(span(0, 1000), np.full(1000, PageType.NOTAB, np.uint8))
    types.update(u64(70_000, 9, 500_000), u8(PageType.L4TAB, PageType.XTAB, PageType.BROKEN))
    types.finish()
    loaded = PageTypes.load(tmp_path / "types")
    assert loaded.all().tolist() == types.all().tolist()
    assert (tmp_path / "types").read_bytes()[:11] == b"\x10" * 9 + b"\0\x10"


def test_a_wide_pfn_space_costs_no_disk(types, tmp_path):
    types.reserve(1 << 28)
    types.update(u64((1 << 28) - 1), u8(0))
    assert (tmp_path / "types").stat().st_blocks * 512 < 64 << 10


def test_an_empty_table_loads(types, tmp_path):
    types.finish()
    loaded = PageTypes.load(tmp_path / "types")
    assert loaded.nr_pages == 0 and loaded.present().count == 0
