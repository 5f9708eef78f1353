import ctypes
import errno
import os

import pytest

from xendpy.guest import writeback as writeback_module
from xendpy.guest.writeback import WriteBack

MIB = 1 << 20
PAGES = 1024  # of a batch, 4 MiB


@pytest.fixture
def let_go(monkeypatch):
    let_go = []

    def record(_fd: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        let_go.append((offset // MIB, length // MIB))

    monkeypatch.setattr(os, "posix_fadvise", record)
    return let_go


@pytest.fixture
def calls(monkeypatch):
    calls = []

    def record(_fd: int, offset: int, length: int, flags: int) -> int:
        calls.append((offset // MIB, length // MIB, flags))
        return 0

    monkeypatch.setattr(writeback_module, "_sync_file_range", record)
    return calls


def test_each_window_is_started_and_the_oldest_awaited_and_let_go(calls, let_go):
    write_back = WriteBack(-1)
    for batch in range(9 * 8):
        write_back.note(batch * PAGES, (batch + 1) * PAGES, PAGES)
    started = [(offset, length) for offset, length, flags in calls if flags == 2]
    waited = [offset for offset, _, flags in calls if flags == 7]
    assert started == [(32 * window, 32) for window in range(9)]
    assert waited == [0, 32, 64, 96]
    assert let_go == [(offset, 32) for offset in waited]


def test_scattered_pages_wait_until_they_are_many(calls):
    write_back = WriteBack(-1)
    for _ in range(23):
        write_back.note(0, 1 << 18, PAGES)  # 4 MiB somewhere within 1 GiB
    assert not calls
    write_back.note(0, 1 << 18, PAGES)
    assert calls == [(0, 1024, 2)]


def test_never_are_more_than_256_mib_unsynced(calls, let_go):
    write_back = WriteBack(-1)
    for batch in range(200):
        scattered = batch % 50 > 25
        first = 0 if scattered else batch * PAGES
        write_back.note(first, (1 << 20) if scattered else first + PAGES, PAGES)
        assert write_back._pending + write_back._filled <= 256 * MIB
    assert any(flags == 7 for _, _, flags in calls)


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get
)
def test_what_did_not_come_to_disk_is_told_and_not_let_go(monkeypatch, let_go, number):
    failing(monkeypatch, number, flags=7)
    write_back = WriteBack(-1)
    with pytest.raises(OSError, match=os.strerror(number)):
        fill(write_back, 256 * MIB)
    assert let_go == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM], ids=errno.errorcode.get)
def test_where_it_cannot_be_started_early_the_final_fsync_does_all(monkeypatch, let_go, number):
    failing(monkeypatch, number)
    fill(WriteBack(-1), 256 * MIB)


def failing(monkeypatch, number, flags=None):
    def fail(_fd: int, _offset: int, _length: int, given: int) -> int:
        if flags is not None and given != flags:
            return 0
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(writeback_module, "_sync_file_range", fail)


def fill(write_back, nr_bytes):
    for first in range(0, nr_bytes // 4096, PAGES):
        write_back.note(first, first + PAGES, PAGES)
