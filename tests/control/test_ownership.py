"""Whose guest it is, long after a migration: what may be started, and what may be destroyed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from tests.control.fakes import FakeHypervisor, guest_config
from xendpy.control.ownership import Ownership
from xendpy.control.workers import Workers
from xendpy.errors import DomainStateError
from xendpy.guest.domain import Domain
from xendpy.hypervisor.durable import Durable
from xendpy.migration.handover import Direction, Entry, Step, new_id
from xendpy.migration.journal import Journal

OUT, IN = Direction.OUT, Direction.IN
CONFIG = guest_config("web1")
OTHER_UUID = "00000000-0000-4000-8000-000000000002"
CAME = (Step.RECEIVED, Step.OWNED, Step.RUNNING, Step.CLOSED)


class Holding(FakeHypervisor):
    """Guests can be held; none came in by a migration that is still known."""

    def hold(self, domain: Domain, reason: str) -> None:
        self.calls.append(("hold", domain.name))

    def release_hold(self, domain: Domain) -> None:
        self.calls.append(("release_hold", domain.name))

    def arrival(self, migration_id: str) -> None:
        return None


class Books:
    """A host with one guest, its journal, and what acts on it."""

    def __init__(self, path: Path, workers: Workers) -> None:
        ticks = itertools.count(1)
        self.hypervisor = Holding()
        self.journal = Journal(path, Durable(), lambda: float(next(ticks)))
        self.ownership = Ownership(cast(Any, self.hypervisor), self.journal, workers)

    def write(self, direction: Direction, steps: Sequence[Step], peer: str = "b") -> Entry:
        begun = Step.SENDING if direction is OUT else Step.INCOMING
        entry = self.journal.begin(
            Entry(
                id=new_id(), direction=direction, step=begun, name=CONFIG.name,
                uuid=CONFIG.uuid, peer=peer, peer_host_id=f"host-{peer}",
            )
        )  # fmt: skip
        for step in steps:
            entry = self.journal.advance(entry.id, direction, step)
        return entry

    def step(self, entry: Entry) -> Step:
        known = self.journal.get(entry.id, entry.direction)
        assert known is not None
        return known.step


@pytest.fixture
def books(tmp_path: Path, workers: Workers) -> Books:
    return Books(tmp_path / "migrations", workers)


@pytest.mark.parametrize("by_name", [False, True], ids=["uuid", "name"])
@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((Step.SENT,), "b may own it"),
        ((Step.RELEASED,), "b may own it"),
        ((Step.RELEASED, Step.MOVED), "it was moved to b"),
        ((Step.RELEASED, Step.MOVED, Step.CLOSED), "it was moved to b"),
    ],
    ids=str,
)
def test_what_another_host_has_is_not_started(
    books: Books, steps: tuple[Step, ...], text: str, by_name: bool
) -> None:
    books.write(OUT, steps)
    uuid = OTHER_UUID if by_name else CONFIG.uuid
    with pytest.raises(DomainStateError, match=text):
        books.ownership.refuse_unless_owned(uuid, "web1", "create", by_name=by_name)
    books.ownership.refuse_unless_owned(OTHER_UUID, "web1", "create")


@pytest.mark.parametrize(
    ("steps", "text"),
    [((), "it is coming in from b"), ((Step.RECEIVED,), "b may own it")],
    ids=["coming", "received"],
)
def test_what_is_not_handed_over_yet_is_not_touched(
    books: Books, steps: tuple[Step, ...], text: str
) -> None:
    books.write(IN, steps)
    with pytest.raises(DomainStateError, match=text):
        books.ownership.refuse_in_doubt(CONFIG.uuid, "web1", "migrate")


async def test_what_was_taken_back_is_not_removed_when_the_peer_is_heard(books: Books) -> None:
    moved = books.write(OUT, (Step.RELEASED, Step.MOVED))
    books.ownership.refuse_unless_owned(CONFIG.uuid, "web1", "create", force=True)
    books.hypervisor.add(CONFIG)
    books.ownership.refuse_unless_owned(CONFIG.uuid, "web1", "restore")
    assert await books.ownership.heard(moved, "running")
    assert [guest.name for guest in books.hypervisor.domains()] == ["web1"]
    assert books.step(moved) is Step.CLOSED
    books.ownership.refuse_unless_owned(CONFIG.uuid, "web1", "restore")


@pytest.mark.parametrize("so_far", [0, 1, 4], ids=["coming", "received", "running"])
@pytest.mark.parametrize("how", ["heard", "recover", "close"])
async def test_what_came_back_is_not_removed(books: Books, so_far: int, how: str) -> None:
    """The link broke before the peer was told that the copy here is gone."""
    moved = books.write(OUT, (Step.RELEASED, Step.MOVED))
    books.hypervisor.add(CONFIG)
    books.write(IN, CAME[:so_far], peer="c")
    if how == "heard":
        assert await books.ownership.heard(moved, "running")
    elif how == "recover":
        await books.ownership.recover()
    else:
        await books.ownership.close(moved)
    assert ("destroy", "web1") not in books.hypervisor.calls


async def test_a_copy_that_is_left_is_removed(books: Books) -> None:
    moved = books.write(OUT, (Step.RELEASED, Step.MOVED))
    books.hypervisor.add(CONFIG)
    books.write(IN, (Step.NOT_RECEIVED, Step.CLOSED))  # it was refused: its uuid is taken
    assert await books.ownership.heard(moved, "running")
    assert books.hypervisor.calls == [("destroy", "web1")]


async def test_a_guest_kept_once_is_not_let_go_on_when_it_was_released_later(books: Books) -> None:
    books.write(OUT, (Step.KEPT,), peer="unreachable")
    books.write(OUT, (Step.RELEASED,), peer="c")
    books.hypervisor.add(CONFIG)
    await books.ownership.recover()
    assert books.hypervisor.calls == [("hold", "web1")]
