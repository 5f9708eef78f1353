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
