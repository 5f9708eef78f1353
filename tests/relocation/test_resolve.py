"""What a target answers a source that redials, and what it does when it cannot write it down."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failing import FailingDurable
from xendpy.errors import JournalError
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.handover import Direction, Entry, Step, new_id
from xendpy.migration.journal import Journal
from xendpy.paths import Paths
from xendpy.relocation.resolve import answer_source, field, request

UUID = "5f1d9a52-6d0c-4c4e-9a52-00000000be9c"
HOST_ID = "6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10"


class Busy(Journal):
    """Between the look and the deed the guest's own connection comes a step on, once."""

    quicker = False

    def get(self, entry_id: str, direction: Direction) -> Entry | None:
        found = super().get(entry_id, direction)
        if self.quicker:
            self.quicker = False
            self.advance(entry_id, direction, Step.RECEIVED)
        return found


@pytest.fixture
def disk() -> FailingDurable:
    return FailingDurable()


@pytest.fixture
def journal(tmp_path: Path, disk: FailingDurable) -> Journal:
    return Journal(tmp_path / "migrations", disk, time.time)


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[StoreHypervisor]:
    store = StoreHypervisor(Paths(tmp_path / "root"))
    yield store
    store.close()


def arrived(journal: Journal, *steps: Step) -> Entry:
    found = journal.begin(
        Entry(
            id=new_id(), direction=Direction.IN, step=Step.INCOMING, name="web1", uuid=UUID,
            peer="et-virt07", peer_host_id=HOST_ID,
        )
    )  # fmt: skip
    for step in steps:
        found = journal.advance(found.id, Direction.IN, step)
    return found


def ask(journal: Journal, hypervisor: StoreHypervisor, entry: Entry, said: Step) -> str:
    source = Entry(
        id=entry.id, direction=Direction.OUT, step=said, name="web1", uuid=UUID, peer="et-virt08"
    )
    line = request(source, HOST_ID).decode()
    reply = answer_source(
        line, journal=journal, hypervisor=hypervisor, own_host_id=HOST_ID, abort=str
    )
    return field(reply, "state")


RUNNING = (Step.RECEIVED, Step.OWNED, Step.RUNNING)


@pytest.mark.parametrize(
    ("steps", "said", "state"),
    [
        (RUNNING, Step.RELEASED, "running"),
        (RUNNING, Step.MOVED, "running"),
        ((*RUNNING, Step.CLOSED), Step.MOVED, "running"),
        ((Step.NOT_RECEIVED,), Step.RELEASED, "not-received"),
        ((Step.NOT_RECEIVED,), Step.KEPT, "not-received"),
        ((Step.NOT_RECEIVED, Step.CLOSED), Step.KEPT, "not-received"),
        ((), Step.KEPT, "not-received"),
    ],
)
def test_what_a_target_stands_by(
    journal: Journal,
    hypervisor: StoreHypervisor,
    steps: tuple[Step, ...],
    said: Step,
    state: str,
) -> None:
    entry = arrived(journal, *steps)
    assert ask(journal, hypervisor, entry, said) == state
    assert (journal.open_entries() == []) is (said is not Step.RELEASED)


@pytest.mark.parametrize(
    ("steps", "said"),
    [(RUNNING, Step.MOVED), ((Step.NOT_RECEIVED,), Step.KEPT), ((), Step.KEPT)],
)
def test_a_full_disk_answers_nothing_and_is_asked_again(
    journal: Journal,
    hypervisor: StoreHypervisor,
    disk: FailingDurable,
    steps: tuple[Step, ...],
    said: Step,
) -> None:
    entry = arrived(journal, *steps)
    disk.arm(errno.ENOSPC, 1)
    with pytest.raises(JournalError, match="no space left on device"):
        ask(journal, hypervisor, entry, said)
    assert [left.id for left in journal.open_entries()] == [entry.id]
    disk.lift()
    assert ask(journal, hypervisor, entry, said) == (
        "running" if steps == RUNNING else "not-received"
    )
    assert journal.open_entries() == []


def test_a_guest_that_was_whole_in_that_moment_is_not_left_behind(
    tmp_path: Path, hypervisor: StoreHypervisor
) -> None:
    journal = Busy(tmp_path / "busy", Durable(), time.time)
    entry = arrived(journal)
    journal.quicker = True
    assert ask(journal, hypervisor, entry, Step.KEPT) == "received"  # and so it asks again
    (left,) = journal.open_entries()
    assert left.step is Step.RECEIVED
    assert ask(journal, hypervisor, left, Step.KEPT) == "not-received"
    assert journal.open_entries() == []
