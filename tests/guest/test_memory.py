import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xendpy.errors import OutOfMemory
from xendpy.guest import memory as memory_module
from xendpy.guest.memory import HOLE_PAGES, GuestMemory

PAGE = 4096


def u64(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def span(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.uint64)


def create(path: Path) -> GuestMemory:
    return GuestMemory(os.open(path, os.O_RDWR | os.O_CREAT))


def blocks(path: Path) -> int:
    """Return the pages that `path` occupies on disk."""
    return path.stat().st_blocks * 512 // PAGE


def store(memory: GuestMemory, pfns: np.ndarray, values: dict[int, int] | None = None) -> int:
    """Store ones, but `values` in the pages given by their place in the batch."""
    data = np.ones((len(pfns), PAGE), np.uint8)
    for index, value in (values or {}).items():
        data[index] = value
    return memory.store(pfns, memoryview(data).cast("B"))


def zeros(*indices: int) -> dict[int, int]:
    return dict.fromkeys(indices, 0)


def fill(memory: GuestMemory, pfns: np.ndarray, value: int) -> None:
    for view in memory.views(pfns):
        np.frombuffer(view, np.uint8)[:] = value


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memory"


@pytest.fixture
def memory(path):
    memory = create(path)
    yield memory
    memory.close()


def test_a_view_per_contiguous_run_in_the_order_given(memory):
    views = memory.views(u64(9, 3, 4, 5, 1))
    assert [view.nbytes for view in views] == [PAGE, 3 * PAGE, PAGE]
    assert not any(view.readonly for view in views)
    for value, view in enumerate(views, 1):
        view[:] = bytes([value]) * view.nbytes
    assert memory.pages[[1, 3, 4, 5, 9], 0].tolist() == [3, 2, 2, 2, 1]


def test_frame_n_lies_at_n_times_4096(memory, path):
    memory.write(5, b"hello")
    memory.close()
    data = path.read_bytes()
    assert data[5 * PAGE : 5 * PAGE + 5] == b"hello"


def test_memory_grows_to_a_distant_pfn_and_keeps_what_was_there(memory, path):
    fill(memory, u64(0), 7)
    fill(memory, u64(0xFEFFF), 9)  # where an HVM guest has its special pages
    assert memory.pages[0, 0] == 7
    assert memory.pages[0xFEFFF, 4095] == 9
    assert memory.nr_pages == 0xFF000
    assert blocks(path) < 64


def test_views_handed_out_before_growing_still_reach_the_guest(memory):
    (old,) = memory.views(u64(2))
    memory.reserve(1 << 20)
    old[:3] = b"abc"
    assert memory.pages[2, :3].tobytes() == b"abc"


def test_the_widest_legacy_pfn_space_costs_nothing(memory, path):
    memory.reserve(1 << 28)
    fill(memory, u64((1 << 28) - 1), 1)
    assert blocks(path) < 64
    assert memory.allocated_pages == 1


def test_frames_are_allocated_before_their_views_are_handed_out(memory, path):
    views = memory.views(span(0, 256))
    assert len(views) == 1
    assert blocks(path) >= 256  # nothing was written


def test_pages_land_where_their_pfns_say(memory):
    pfns = u64(9, 2, 3, 700, 1 << 20)
    assert store(memory, pfns, dict(enumerate(range(10, 15)))) == 0
    assert memory.pages[[9, 2, 3, 700, 1 << 20], 4095].tolist() == [10, 11, 12, 13, 14]
    assert memory.nr_pages == (1 << 20) + 1 and memory.allocated_pages == 5
    assert memory.store(u64(), memoryview(b"")) == 0


def test_zero_pages_that_were_never_there_stay_holes(memory, path):
    assert store(memory, span(0, 1024), zeros(*range(256, 768), 1000)) == 513
    os.fsync(memory.fd)
    assert blocks(path) <= 1024 - 513 + 8
    assert memory.allocated_pages == 1024 - 513
    assert memory.pages[[255, 256, 767, 768, 1000], 0].tolist() == [1, 0, 0, 1, 0]


def test_a_run_of_pages_that_became_zero_becomes_a_hole(memory, path):
    pfns = span(0, 1024)
    store(memory, pfns)
    assert store(memory, pfns, zeros(*range(256, 768))) == 512
    os.fsync(memory.fd)
    assert blocks(path) <= 1024 - 512 + 8
    assert memory.allocated_pages == 512
    assert memory.pages[255, 0] == 1 and not memory.pages[256:768].any()


def test_short_runs_of_pages_that_became_zero_are_zeroed_in_place(memory):
    pfns = span(0, 2 * HOLE_PAGES)
    store(memory, pfns)
    assert store(memory, pfns, zeros(*range(HOLE_PAGES - 1), 100)) == HOLE_PAGES
    assert memory.allocated_pages == 2 * HOLE_PAGES
    assert not memory.pages[: HOLE_PAGES - 1].any() and not memory.pages[100].any()


def test_where_holes_cannot_be_punched_pages_that_became_zero_are_zeroed(memory, monkeypatch):
    monkeypatch.setattr(memory_module, "_fallocate", lambda *_: -1)
    pfns = span(0, 2 * HOLE_PAGES)
    store(memory, pfns)
    assert store(memory, pfns, zeros(*range(2 * HOLE_PAGES))) == 2 * HOLE_PAGES
    assert not memory.pages[: 2 * HOLE_PAGES].any()


ALMOST_ZERO = [("first byte", 0), ("second word", 8), ("middle", 2048), ("last byte", 4095)]


@pytest.mark.parametrize(
    "offset", [row[1] for row in ALMOST_ZERO], ids=[r[0] for r in ALMOST_ZERO]
)
@pytest.mark.parametrize("others", [0, 1])
def test_a_page_with_one_byte_set_is_no_zero_page(memory, offset, others):
    data = np.full((HOLE_PAGES, PAGE), others, np.uint8)
    data[3] = 0
    data[5] = 0
    data[3, offset] = 1
    nr_zeros = memory.store(span(0, HOLE_PAGES), memoryview(data).cast("B"))
    assert nr_zeros == (1 if others else HOLE_PAGES - 1)
    assert memory.pages[3, offset] == 1


def test_zero_pages_in_scattered_order_are_found(memory):
    assert store(memory, u64(9, 2, 700, 5), zeros(0, 3)) == 2
    assert memory.pages[[9, 2, 700, 5], 0].tolist() == [0, 1, 1, 0]


def test_a_hole_can_be_filled_again(memory):
    pfns = span(0, 512)
    assert store(memory, pfns, zeros(*range(512))) == 512
    assert store(memory, pfns) == 0
    assert (memory.pages[:512] == 1).all()


def test_dropped_frames_read_as_zeros_and_take_no_room(memory, path):
    fill(memory, span(0, 600), 1)
    memory.drop(u64(*range(0, 500), 599, 10_000))
    assert not memory.pages[0:500].any() and not memory.pages[599].any()
    assert memory.pages[500, 0] == 1
    assert memory.allocated_pages == 99
    os.fsync(memory.fd)
    assert blocks(path) <= 99 + 8


def test_where_holes_cannot_be_punched_dropped_frames_are_zeroed(memory, monkeypatch):
    monkeypatch.setattr(memory_module, "_fallocate", lambda *_: -1)
    fill(memory, span(0, 128), 1)
    memory.drop(span(0, 64))
    assert not memory.pages[0:64].any() and memory.pages[64, 0] == 1


def test_drop_all_but_keeps_only_what_is_present(memory):
    fill(memory, u64(1, 2, 3, 40), 1)
    present = np.zeros(10, np.bool_)
    present[[1, 3]] = True
    memory.drop_all_but(present)
    assert memory.pages[[1, 2, 3, 40], 0].tolist() == [1, 0, 1, 0]


def test_finish_cuts_or_grows_the_file_to_whole_frames(memory, path):
    fill(memory, u64(3), 1)
    memory.finish(5)
    assert path.stat().st_size == 5 * PAGE and memory.nr_pages == 5
    memory.finish(9000)
    assert path.stat().st_size == 9000 * PAGE and memory.nr_pages == 9000
    assert memory.pages[3, 0] == 1


def test_reading_allocates_nothing_and_refuses_what_is_beyond(memory, path):
    memory.write(0, b"x")
    memory.finish(1000)
    (view,) = memory.read(span(0, 1000))
    assert bytes(view[:1]) == b"x" and not any(view[PAGE:])
    del view
    assert blocks(path) < 64
    with pytest.raises(ValueError, match="0x3e8"):
        memory.read(u64(1000))


def test_closing_with_views_alive_leaves_them_valid(memory):
    (view,) = memory.views(u64(4))
    memory.close()
    memory.close()
    view[:2] = b"ok"
    assert bytes(view[:2]) == b"ok"


def test_memfd_memory_needs_no_file():
    memory = GuestMemory.anonymous("guest")
    memory.write(7, b"data")
    other = GuestMemory(os.dup(memory.fd))
    assert other.pages[7, :4].tobytes() == b"data"
    memory.close()
    other.close()


FULL = """
import os, resource, sys
import numpy as np
from xendpy.errors import OutOfMemory
from xendpy.guest.memory import GuestMemory
resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
memory = GuestMemory(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT))
memory.views(np.arange(1000, dtype=np.uint64))[0][:] = b"x" * 4096000
try:
    memory.views(np.arange(1000, 2000, dtype=np.uint64))
except OutOfMemory as error:
    print("refused", error.wanted_bytes > 0)
"""


def test_a_limit_on_file_size_is_an_error_and_no_signal(path):
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=30
    )
    assert run.returncode not in (-signal.SIGBUS, -signal.SIGXFSZ)
    assert run.stdout.split() == ["refused", "True"], run.stderr


def test_a_full_disk_is_an_error_where_pages_are_stored(small_disk):
    memory = create(small_disk / "memory")
    store(memory, span(0, 256))
    with pytest.raises(OutOfMemory) as caught:
        store(memory, span(256, 4096))
    assert caught.value.wanted_bytes == 4096 * PAGE
    assert (memory.pages[:256] == 1).all()
    memory.close()


def test_a_full_disk_is_an_error_before_a_view_is_handed_out(small_disk):
    path = small_disk / "memory"
    memory = create(path)
    fill(memory, span(0, 256), 1)
    with pytest.raises(OutOfMemory) as caught:
        memory.views(span(256, 4096))
    assert caught.value.wanted_bytes == 4096 * PAGE
    assert caught.value.free_bytes == 7 << 20
    assert (memory.pages[:256] == 1).all()
    memory.close()


def test_an_address_space_limit_is_an_error(path):
    code = FULL.replace("RLIMIT_FSIZE, (4 << 20, 4 << 20)", "RLIMIT_AS, (4 << 30, 4 << 30)")
    code = code.replace("np.arange(1000, 2000, dtype=np.uint64)", "np.array([1 << 27], np.uint64)")
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=30
    )
    assert run.stdout.split() == ["refused", "True"], run.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_scattered_frames_get_whole_chunks_until_the_end(tmp_path):
    memory = GuestMemory(os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT))
    pfns = np.arange(0, 4096, 64, dtype=np.uint64)
    for view in memory.views(pfns):
        view[:] = b"\1" * 4096
    assert memory.allocated_pages > 3840
    present = np.zeros(4096, np.bool_)
    present[pfns] = True
    memory.drop_all_but(present)
    memory.finish(4096)
    assert memory.allocated_pages == len(pfns)
    assert memory.pages[:, 0].nonzero()[0].tolist() == pfns.tolist()
    memory.close()
