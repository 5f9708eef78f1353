import os

import numpy as np
import pytest

from xendpy.errors import HypervisorError
from xendpy.guest.memoryfile import MemoryFile

PAGE = 4096


def u64(*values):
    return np.array(values, np.uint64)


@pytest.fixture
def path(tmp_path):
    """Four frames: of ones, of twos, a hole, of fours."""
    path = tmp_path / "memory"
    with path.open("wb") as file:
        file.write(b"\1" * PAGE + b"\2" * PAGE)
        file.seek(3 * PAGE)
        file.write(b"\4" * PAGE)
    return path


@pytest.fixture
def memory(path):
    memory = MemoryFile(path)
    yield memory
    memory.close()


def test_frames_come_in_the_order_asked_for(memory):
    assert memory.nr_pages == 4
    (view,) = memory.read(u64(3, 0, 1, 2))
    assert view.nbytes == 4 * PAGE
    assert [view[index * PAGE] for index in range(4)] == [4, 1, 2, 0]
    assert bytes(view[PAGE - 1 : PAGE + 1]) == b"\4\1"


def test_the_next_frames_take_the_memory_of_the_last(memory):
    (first,) = memory.read(u64(0, 1))
    (second,) = memory.read(u64(3))
    assert second.nbytes == PAGE
    assert first[0] == second[0] == 4


def test_nothing_is_asked_for_and_nothing_beyond(memory, path):
    assert memory.read(u64()) == []
    with pytest.raises(ValueError, match="pfn 0x4 is beyond 0x4 pages"):
        memory.read(u64(1, 4))
    os.truncate(path, 0)
    empty = MemoryFile(path)
    assert empty.nr_pages == 0 and empty.read(u64()) == []
    empty.close()


def test_a_file_that_shrinks_is_an_error_with_the_place(memory, path):
    os.truncate(path, 3 * PAGE + 10)
    with pytest.raises(HypervisorError, match=f"{path}: it ends at byte {3 * PAGE + 10}"):
        memory.read(u64(2, 3))
    assert memory.read(u64(0))[0][0] == 1


def test_a_disk_that_cannot_be_read_is_an_error_with_the_file(memory, path, monkeypatch):
    def fail(*_):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(HypervisorError, match=f"Unable to read {path}: Input/output error"):
        memory.read(u64(0))


def test_an_image_without_memory_is_an_error_with_the_file(tmp_path):
    with pytest.raises(HypervisorError, match="nowhere: No such file or directory"):
        MemoryFile(tmp_path / "nowhere")


def test_closing_twice_closes_once(memory):
    memory.close()
    memory.close()
