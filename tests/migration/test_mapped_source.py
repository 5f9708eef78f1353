"""Pages of a file that go on from where they lie."""

from __future__ import annotations

import os

import numpy as np
import pytest

from xendpy.errors import StreamTruncated
from xendpy.guest.pages import PageBatch
from xendpy.migration.mapped_source import MappedSource

PAGE = 4096


def batch(count: int) -> PageBatch:
    return PageBatch(np.arange(count, dtype=np.uint64), np.zeros(count, np.uint8))


@pytest.fixture
def fd(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"envelope" + b"head" + b"A" * PAGE + b"B" * PAGE + b"tail")
    fd = os.open(path, os.O_RDWR)
    os.lseek(fd, 8, os.SEEK_SET)
    yield fd
    os.close(fd)


def test_pages_are_lent_and_control_data_is_read(fd):
    source = MappedSource(fd)
    assert source.recv_exactly(4) == b"head"
    (view,) = source.view(batch(2))
    source.recv_into([view])
    assert view.readonly and bytes(view) == b"A" * PAGE + b"B" * PAGE
    assert source.offset == 4 + 2 * PAGE
    assert source.recv_exactly(4) == b"tail"


def test_memory_of_somebody_else_is_filled(fd):
    source = MappedSource(fd)
    source.recv_exactly(4)
    source.view(batch(1))
    own = bytearray(PAGE)
    source.recv_into([memoryview(own)])
    assert own == b"A" * PAGE and source.offset == 4 + PAGE


def test_a_file_that_ends_in_a_batch_is_truncated(fd):
    source = MappedSource(fd)
    source.recv_exactly(4)
    with pytest.raises(StreamTruncated) as caught:
        source.view(batch(3))
    assert (caught.value.offset, caught.value.wanted, caught.value.got) == (
        4,
        3 * PAGE,
        2 * PAGE + 4,
    )


def test_a_batch_without_data_gets_no_view_and_an_empty_file_none(fd, tmp_path):
    assert MappedSource(fd).view(batch(0)) == []
    empty = os.open(tmp_path / "empty", os.O_RDWR | os.O_CREAT)
    with pytest.raises(StreamTruncated):
        MappedSource(empty).view(batch(1))
    os.close(empty)


def test_a_file_cut_meanwhile_is_an_error_of_the_write(fd, tmp_path):
    source = MappedSource(fd)
    source.recv_exactly(4)
    (view,) = source.view(batch(2))
    os.ftruncate(fd, 0)
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError):
        os.write(out, view)
    os.close(out)
