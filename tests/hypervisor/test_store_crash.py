"""The store after kill -9 and after power cuts, at every moment of a guest's arrival."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guests import (
    UUID,
    closing,
    contents,
    guest,
    opening,
    plain,
    send_all,
    send_guest,
    send_pages,
    span,
    u64,
)
from tests.powercut import ALL, NONE, Recorder, leave
from xendpy.hypervisor.durable import Durable, OperationKind
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.paths import Paths
from xendpy.stream.records import End, Ending

PROJECT = Path(__file__).resolve().parents[2]
P2M_SIZE = 64  # small: every prefix of the operations is laid out as files

CHILD = """
import sys
from pathlib import Path
from tests.guests import *
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.paths import Paths
from xendpy.stream.records import End, Ending

root, stage = sys.argv[1:]
store = StoreHypervisor(Paths(Path(root)))

def stop():
    print("reached", flush=True)
    sys.stdin.read()

with store.restore(guest()) as session:
    send_all(session, opening())
    send_pages(session, span(0, 32), 1)
    send_pages(session, span(40, 8), 1)
    if stage == "first round":
        stop()
    send_pages(session, u64(3, 4, 60), 2)
    if stage == "second round":
        stop()
    session.apply(Ending())
    if stage == "ending":
        stop()
    send_all(session, [*closing(), End()])
    if stage == "end":
        stop()
    domain = session.complete()
    if stage == "complete":
        stop()
with store.save(domain) as source:
    if stage == "saving":
        list(source.closing())
        stop()
    source.relinquish()
stop()
"""

AFTER_KILL = [
    # stage, guests at rest, partial guests
    ("first round", 0, 0),
    ("second round", 0, 1),
    ("ending", 0, 1),
    ("end", 0, 1),
    ("complete", 1, 0),
    ("saving", 1, 0),
    ("relinquished", 0, 0),
]


def killed_at(root: Path, stage: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), stage],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reached\n"
        child.kill()
        child.wait(80)


def check_no_litter(root: Path) -> None:
    store_dir = Paths(root).store_dir
    assert [*(store_dir / "incoming").iterdir(), *(store_dir / "trash").iterdir()] == []


@pytest.mark.parametrize(
    ("stage", "at_rest", "partial"), AFTER_KILL, ids=[row[0] for row in AFTER_KILL]
)
def test_after_kill_9(tmp_path, stage, at_rest, partial):
    killed_at(tmp_path, stage)
    store = StoreHypervisor(Paths(tmp_path))
    assert len(store.domains()) == at_rest
    assert len(store.partials()) == partial
    check_no_litter(tmp_path)
    if at_rest:
        with store.save(store.find("web01")) as source:
            found = contents(source)
            assert len(found) == 41 and found[3] == (0, 2) and found[5] == (0, 1)
            assert plain(source.closing()) == plain([*closing(), End()])
            source.resume()
    store.close()


def test_a_partial_guest_after_kill_9_holds_what_had_come(tmp_path):
    killed_at(tmp_path, "second round")
    store = StoreHypervisor(Paths(tmp_path))
    (partial,) = store.partials()
    assert partial.label == "web01.partial" and "daemon ended" in partial.reason
    assert (partial.rounds, partial.pages) == (2, 43)
    memory = (partial.path / "memory").read_bytes()
    assert [memory[pfn * 4096] for pfn in (3, 5, 60)] == [2, 1, 2]
    types = (partial.path / "types").read_bytes()
    assert types[60] == 0x10 and types[50] == 0
    store.close()


def recorded(root: Path, live: bool) -> tuple[list, list[int]]:
    """Take a guest in; return the operations, and how many there were when it was safe."""
    recorder = Recorder()
    store = StoreHypervisor(Paths(root), durable=Durable(recorder))
    marks = [len(recorder.operations)]
    with store.restore(guest()) as session:
        if live:
            send_all(session, opening(P2M_SIZE))
            send_pages(session, span(0, 32), 1)
            send_pages(session, u64(3), 2)
            marks.append(len(recorder.operations))
            send_all(session, [Ending(), *closing(), End()])
        else:
            send_guest(session, span(0, 32), p2m_size=P2M_SIZE)
        session.complete()
    marks.append(len(recorder.operations))
    store.close()
    return recorder.operations, marks


@pytest.mark.parametrize("kept", [ALL, NONE], ids=["killed", "power cut"])
def test_a_power_cut_at_any_moment_leaves_all_or_nothing(tmp_path, kept):
    root = tmp_path / "root"
    root.mkdir()
    operations, marks = recorded(root, live=False)
    begun, safe = marks
    outcomes = []
    for count in range(begun, safe + 1):
        target = tmp_path / f"cut{count}"
        leave(operations[:count], root, target, kept)
        outcomes.append(outcome(target))
    assert outcomes[-1] == "whole"
    order = {"nothing": 0, "partial": 1, "whole": 2}
    assert sorted(outcomes, key=order.__getitem__) == outcomes
    assert set(outcomes) == set(order)


@pytest.mark.parametrize("seed", range(3))
def test_a_disk_that_wrote_in_an_order_of_its_own_leaves_all_or_nothing(tmp_path, seed):
    root = tmp_path / "root"
    root.mkdir()
    operations, (begun, safe) = recorded(root, live=False)
    chance = random.Random(seed)
    for count in range(begun, safe + 1):
        target = tmp_path / f"cut{count}"
        leave(operations[:count], root, target, lambda: chance.random() < 0.5)
        left = outcome(target)
    assert left == "whole"


def test_a_guest_is_safe_by_the_time_complete_returns(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    operations, marks = recorded(root, live=True)
    kinds = [operation.kind for operation in operations]
    moved = max(
        index
        for index, operation in enumerate(operations)
        if operation.kind is OperationKind.RENAME and operation.path.name == UUID
    )
    assert kinds[moved + 1 : marks[-1]] == [OperationKind.SYNC_DIR, OperationKind.SYNC_DIR]
    synced = {
        operation.path.name
        for operation in operations[marks[1] : moved]
        if operation.kind is OperationKind.SYNC
    }
    assert {"memory", "types", "records"} <= synced


def test_the_note_of_the_first_round_outlives_a_power_cut(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    operations, marks = recorded(root, live=True)
    leave(operations[: marks[1]], root, tmp_path / "cut", NONE)
    store = StoreHypervisor(Paths(tmp_path / "cut"))
    (partial,) = store.partials()
    memory = (partial.path / "memory").read_bytes()
    assert memory[:4096] == b"\1" * 4096
    store.close()


def outcome(root: Path) -> str:
    store = StoreHypervisor(Paths(root))
    try:
        check_no_litter(root)
        domains, partials = store.domains(), store.partials()
        assert len(domains) + len(partials) <= 1
        if partials:
            return "partial"
        if not domains:
            return "nothing"
        with store.save(store.find("web01")) as source:
            assert contents(source) == dict.fromkeys(range(32), (0, 1))
            assert plain(source.opening()) == plain(opening(P2M_SIZE))
            assert plain(source.closing()) == plain([*closing(), End()])
            source.resume()
        return "whole"
    finally:
        store.close()
