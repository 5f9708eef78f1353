"""Who owns a guest whose hand-over was broken, by what its target stands by."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xendpy.control.ownership import Ownership
from xendpy.control.workers import Workers
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.handover import Direction, Entry, Journal, Step, new_id
from xendpy.paths import Paths

UUID = "5f1d9a52-6d0c-4c4e-9a52-00000000be9c"
WAYS = {Step.MOVED: (Step.RELEASED, Step.MOVED), Step.KEPT: (Step.KEPT,)}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "migrations", Durable(), time.time)


@pytest.fixture
def ownership(tmp_path: Path, journal: Journal) -> Iterator[Ownership]:
    hypervisor, workers = StoreHypervisor(Paths(tmp_path / "root")), Workers()
    yield Ownership(hypervisor, journal, workers)
    workers.close()
    hypervisor.close()


def entry(journal: Journal, step: Step) -> Entry:
    """Return an outgoing migration that has come to `step`."""
    found = journal.begin(
        Entry(
            id=new_id(), direction=Direction.OUT, step=Step.SENDING, name="web1", uuid=UUID,
            peer="et-virt08", peer_host_id="6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10",
        )
    )  # fmt: skip
    for passed in WAYS[step]:
        found = journal.advance(found.id, Direction.OUT, passed)
    return found


@pytest.mark.parametrize("step", WAYS)
async def test_a_target_that_could_not_note_it_is_asked_again(
    ownership: Ownership, journal: Journal, step: Step
) -> None:
    told = entry(journal, step)
    assert not await ownership.heard(told, "received")
    assert [open_entry.step for open_entry in journal.open_entries()] == [step]
    assert await ownership.heard(told, "running" if step is Step.MOVED else "not-received")
    assert journal.open_entries() == []
