"""The journal: what may follow what, what is on disk, and who owns a guest."""

from __future__ import annotations

import errno
import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest

from xendpy.errors import JournalError, MigrationError
from xendpy.hypervisor.durable import Durable
from xendpy.migration.handover import NEXT, Direction, Entry, Step, new_id
from xendpy.migration.journal import HISTORY, Journal

UUID = "6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10"
OTHER_UUID = "6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e11"


def journal(path: Path) -> Journal:
    ticks = itertools.count(1)
    return Journal(path, Durable(), lambda: float(next(ticks)))


def entry(direction: Direction, *, uuid: str = UUID, entry_id: str = "") -> Entry:
    step = Step.SENDING if direction is Direction.OUT else Step.INCOMING
    return Entry(
        id=entry_id or new_id(),
        direction=direction,
        step=step,
        name="web1",
        uuid=uuid,
        peer="et-virt08",
        port=8002,
    )


def test_every_step_survives_a_restart(tmp_path: Path) -> None:
    book = journal(tmp_path)
    begun = book.begin(entry(Direction.OUT))
    for step in (Step.RELEASED, Step.MOVED, Step.CLOSED):
        book.advance(begun.id, Direction.OUT, step)
        again = journal(tmp_path).get(begun.id, Direction.OUT)
        assert again == book.get(begun.id, Direction.OUT)
        assert again is not None and again.step is step
    assert again is not None and again.result == "moved"


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        ((Step.RELEASED,), Step.SENT),
        ((Step.RELEASED, Step.MOVED), Step.KEPT),
        ((Step.KEPT,), Step.RELEASED),
        ((Step.SENT, Step.MOVED), Step.KEPT),
    ],
    ids=str,
)
def test_an_owner_cannot_change_its_mind(
    tmp_path: Path, path: tuple[Step, ...], bad: Step
) -> None:
    book = journal(tmp_path)
    begun = book.begin(entry(Direction.OUT))
    for step in path:
        book.advance(begun.id, Direction.OUT, step)
    with pytest.raises(MigrationError, match="may not follow"):
        book.advance(begun.id, Direction.OUT, bad)
    assert journal(tmp_path).get(begun.id, Direction.OUT).step is path[-1]  # type: ignore[union-attr]


def test_a_tombstone_bars_reception(tmp_path: Path) -> None:
    book = journal(tmp_path)
    begun = book.begin(entry(Direction.IN))
    book.advance(begun.id, Direction.IN, Step.NOT_RECEIVED)
    for step in (Step.RECEIVED, Step.OWNED, Step.RUNNING):
        with pytest.raises(MigrationError):
            book.advance(begun.id, Direction.IN, step)


def test_every_step_has_its_successors() -> None:
    assert set(NEXT) == set(Step)
    assert all(NEXT[step] for step in Step if step is not Step.CLOSED)


def test_an_id_is_used_once_a_direction(tmp_path: Path) -> None:
    book = journal(tmp_path)
    begun = book.begin(entry(Direction.OUT))
    book.begin(entry(Direction.IN, entry_id=begun.id))
    with pytest.raises(MigrationError, match="known already"):
        book.begin(entry(Direction.OUT, entry_id=begun.id))


def test_nobody_may_advance_an_entry_that_is_not_on_disk(tmp_path: Path) -> None:
    seen: list[Entry | None] = []

    class Watching(Durable):
        def write_file(self, path: Path, data: bytes) -> None:
            seen.append(book.get("aa" * 16, Direction.IN))
            super().write_file(path, data)

    book = Journal(tmp_path / "journal", Watching(), clock=lambda: 1.0)
    book.begin(entry(Direction.IN, entry_id="aa" * 16))
    assert seen == [None]


def test_who_wants_to_know_hears_of_a_guest_that_is_ours(tmp_path: Path) -> None:
    heard: list[tuple[str, bool]] = []
    book = journal(tmp_path)
    book.on_owned(
        lambda told: heard.append((told.home, book.get(told.id, told.direction) == told))
    )
    begun = book.begin(replace(entry(Direction.IN), home="(domain)"))
    book.advance(begun.id, Direction.IN, Step.RECEIVED)
    assert heard == []
    book.advance(begun.id, Direction.IN, Step.OWNED)
    book.advance(begun.id, Direction.IN, Step.OWNED)  # as after a crash
    book.advance(begun.id, Direction.IN, Step.RUNNING)
    assert heard == [("(domain)", True)] * 2


class FailingDisk(Durable):
    """Fails at the operation of that name."""

    failing = ""

    def create(self, path: Path) -> int:
        self._fail("create")
        return super().create(path)

    def sync_dir(self, path: Path) -> None:
        self._fail("sync_dir")
        super().sync_dir(path)

    def _fail(self, operation: str) -> None:
        if operation == self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("failing", "placed"), [("create", False), ("sync_dir", True)])
def test_a_step_that_cannot_be_written_is_not_taken(
    tmp_path: Path, failing: str, placed: bool
) -> None:
    disk = FailingDisk()
    book = Journal(tmp_path / "journal", disk, clock=lambda: 1.0)
    begun = book.begin(entry(Direction.OUT))
    disk.failing = failing
    with pytest.raises(JournalError, match="no space left on device") as caught:
        book.advance(begun.id, Direction.OUT, Step.RELEASED)
    assert caught.value.placed is placed
    assert book.get(begun.id, Direction.OUT) == begun
    disk.failing = ""
    book.advance(begun.id, Direction.OUT, Step.KEPT)
    assert journal(tmp_path / "journal").find(begun.id).step is Step.KEPT


def test_find_takes_a_unique_prefix(tmp_path: Path) -> None:
    book = journal(tmp_path)
    book.begin(entry(Direction.OUT, entry_id="aa" * 16))
    book.begin(entry(Direction.OUT, entry_id="ab" * 16))
    assert book.find("aaa").id == "aa" * 16
    for prefix in ("a", "c", ""):
        with pytest.raises(MigrationError):
            book.find(prefix)


def test_moved_away_until_it_comes_back(tmp_path: Path) -> None:
    book = journal(tmp_path)
    out = book.begin(entry(Direction.OUT))
    assert book.moved_away(UUID) is None
    for step in (Step.RELEASED, Step.MOVED, Step.CLOSED):
        book.advance(out.id, Direction.OUT, step)
        away = book.moved_away(UUID)
        assert away is not None and away.id == out.id
    back = book.begin(entry(Direction.IN))
    book.advance(back.id, Direction.IN, Step.RECEIVED)
    assert book.moved_away(UUID) is not None
    book.advance(back.id, Direction.IN, Step.OWNED)
    assert book.moved_away(UUID) is None


def test_what_came_last_is_told_without_the_clock(tmp_path: Path) -> None:
    clock = iter(range(1000, 0, -1))  # put back again and again
    book = Journal(tmp_path, Durable(), lambda: float(next(clock)))
    came = book.begin(entry(Direction.IN))
    for step in (Step.RECEIVED, Step.OWNED, Step.RUNNING, Step.CLOSED):
        book.advance(came.id, Direction.IN, step)
    out = book.begin(entry(Direction.OUT))
    for step in (Step.RELEASED, Step.MOVED, Step.CLOSED):
        book.advance(out.id, Direction.OUT, step)
    for again in (book, Journal(tmp_path, Durable(), lambda: 0.0)):
        away = again.moved_away(UUID)
        assert away is not None and away.id == out.id


def test_kept_is_not_away(tmp_path: Path) -> None:
    book = journal(tmp_path)
    out = book.begin(entry(Direction.OUT))
    book.advance(out.id, Direction.OUT, Step.SENT)
    assert book.moved_away(UUID) is not None
    book.advance(out.id, Direction.OUT, Step.KEPT)
    assert book.moved_away(UUID) is None


def test_history_is_bounded_and_remembers_where_guests_went(tmp_path: Path) -> None:
    book = journal(tmp_path)
    moved = book.begin(entry(Direction.OUT))
    for step in (Step.RELEASED, Step.MOVED, Step.CLOSED):
        book.advance(moved.id, Direction.OUT, step)
    other = "00000000-0000-0000-0000-000000000001"
    for _ in range(220):
        begun = book.begin(entry(Direction.OUT, uuid=other))
        book.advance(begun.id, Direction.OUT, Step.KEPT)
        book.advance(begun.id, Direction.OUT, Step.CLOSED)
    again = Journal(tmp_path, Durable(), lambda: 0.0)
    assert len(again.entries()) == 201
    assert again.moved_away(UUID) is not None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / f"{'0' * 32}.out.json").write_text("{")
    with pytest.raises(MigrationError, match=r"0\.out\.json: not a journal entry"):
        journal(tmp_path)


class Hasty(Durable):
    """Spares a test of many writes the waiting for the disk."""

    def sync(self, fd: int, path: Path) -> None:
        pass

    def sync_dir(self, path: Path) -> None:
        pass


def test_a_journal_forgets_old_migrations_but_not_where_guests_went(tmp_path: Path) -> None:
    ticks = itertools.count(1)
    book = Journal(tmp_path, Hasty(), lambda: float(next(ticks)))
    gone = book.begin(entry(Direction.OUT))
    for step in (Step.RELEASED, Step.MOVED, Step.CLOSED):
        book.advance(gone.id, Direction.OUT, step)
    for _ in range(HISTORY + 3):
        kept = book.begin(entry(Direction.OUT, uuid=OTHER_UUID))
        for step in (Step.KEPT, Step.CLOSED):
            book.advance(kept.id, Direction.OUT, step)
    assert len(book.entries()) == len([*tmp_path.glob("*.json")]) == HISTORY + 1
    assert book.moved_away(UUID) == book.get(gone.id, Direction.OUT)
