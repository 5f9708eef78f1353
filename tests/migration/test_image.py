"""The scratch image: what is written, forgotten, compared and summed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from xendpy.guest.pages import PAGE_SIZE, PageBatch, PageType
from xendpy.migration.image import MemoryImage


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def batch(*entries: tuple[int, PageType]) -> PageBatch:
    return PageBatch(
        np.array([pfn for pfn, _ in entries], np.uint64),
        np.array([kind for _, kind in entries], np.uint8),
    )


def put(image: MemoryImage, pages: PageBatch, *fills: int) -> None:
    views = image.populate(pages)
    for view, fill in zip(views, fills, strict=True):
        view[:] = bytes([fill]) * len(view)
    image.store(pages, views)


def page_of(fd: int, pfn: int) -> bytes:
    return os.pread(fd, PAGE_SIZE, pfn * PAGE_SIZE)


def test_views_cover_runs_and_leave_out_pages_without_data(fd: int) -> None:
    image = MemoryImage(fd, 16)
    pages = batch(
        (3, PageType.NOTAB), (4, PageType.XALLOC), (5, PageType.L1TAB), (6, PageType.NOTAB)
    )
    assert [len(view) for view in image.populate(pages)] == [PAGE_SIZE, 2 * PAGE_SIZE]


def test_pages_land_at_their_pfn(fd: int) -> None:
    image = MemoryImage(fd, 16)
    put(image, batch((9, PageType.NOTAB), (2, PageType.L4TAB_PIN)), 0xAA, 0xBB)
    assert page_of(fd, 9) == b"\xaa" * PAGE_SIZE
    assert page_of(fd, 2) == b"\xbb" * PAGE_SIZE
    assert image.present.tolist() == [2, 9]
    assert image.count_of(PageType.L4TAB_PIN) == 1
    assert os.fstat(fd).st_size == 16 * PAGE_SIZE


def test_it_grows_where_nobody_said_how_large_the_guest_is(fd: int) -> None:
    image = MemoryImage(fd, 0)
    put(image, batch((2, PageType.NOTAB)), 0xAA)
    put(image, batch((0xFEFFF, PageType.NOTAB), (0xFF000, PageType.XALLOC)), 0xBB)
    put(image, batch((1, PageType.NOTAB)), 0xCC)
    assert image.present.tolist() == [1, 2, 0xFEFFF, 0xFF000]
    assert (image.nr_pages, os.fstat(fd).st_size) == (0xFF001, 0xFF001 * PAGE_SIZE)
    assert page_of(fd, 0xFEFFF) == b"\xbb" * PAGE_SIZE


def test_the_last_type_counts(fd: int) -> None:
    image = MemoryImage(fd, 4)
    put(image, batch((1, PageType.L1TAB)), 1)
    put(image, batch((1, PageType.NOTAB)), 2)
    assert (image.count_of(PageType.L1TAB), image.count_of(PageType.NOTAB)) == (0, 1)


def test_dropped_pages_become_holes(fd: int) -> None:
    image = MemoryImage(fd, 8)
    put(image, batch(*((pfn, PageType.NOTAB) for pfn in range(8))), 7)
    image.drop(np.array([1, 2, 6], np.uint64))
    assert image.present.tolist() == [0, 3, 4, 5, 7]
    assert page_of(fd, 2) == bytes(PAGE_SIZE)
    assert os.lseek(fd, PAGE_SIZE, os.SEEK_DATA) == 3 * PAGE_SIZE


def test_differing_pages_are_named(fd: int) -> None:
    image = MemoryImage(fd, 8)
    pages = batch(*((pfn, PageType.NOTAB) for pfn in (2, 3, 4, 6)))
    put(image, pages, 1, 1)
    views = image.populate(pages)
    views[0][PAGE_SIZE + 5] = 9
    assert image.differing(pages, views).tolist() == [3]


def test_sum_is_over_pfn_and_page_of_every_present_frame(fd: int) -> None:
    image = MemoryImage(fd, 1024)
    put(image, batch((600, PageType.NOTAB)), 3)
    put(image, batch(*((pfn, PageType.NOTAB) for pfn in range(300))), 5)
    put(image, batch((700, PageType.XALLOC)))
    expected = hashlib.sha256()
    for pfn, fill in [*((pfn, 5) for pfn in range(300)), (600, 3), (700, 0)]:
        expected.update(pfn.to_bytes(8, "little") + bytes([fill]) * PAGE_SIZE)
    assert image.sha256() == expected.hexdigest()


def test_an_absent_frame_is_not_a_page_of_zeros(fd: int) -> None:
    image = MemoryImage(fd, 4)
    put(image, batch((0, PageType.NOTAB)), 1)
    without = image.sha256()
    put(image, batch((1, PageType.NOTAB)), 0)
    assert image.sha256() != without


def test_a_batch_larger_than_the_staging_buffer_is_taken(fd: int) -> None:
    image = MemoryImage(fd, 3000)
    put(image, batch(*((pfn, PageType.NOTAB) for pfn in range(3000))), 4)
    assert page_of(fd, 2999) == b"\x04" * PAGE_SIZE
