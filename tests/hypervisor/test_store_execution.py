"""How guests of the store come to run, with a runner that only remembers."""

import os
import queue
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.guests import (
    OTHER_UUID,
    UUID,
    closing,
    contents,
    guest,
    opening,
    plain,
    send_guest,
    span,
    u64,
)
from xendpy.errors import DomainExists, DomainStateError, HypervisorError, Unsupported
from xendpy.guest.domain import DomainConfig, DomainState
from xendpy.guest.memory import GuestMemory
from xendpy.guest.pages import DirtyBitmap
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.paths import Paths
from xendpy.stream.records import End


@dataclass
class FakeRunning:
    """A guest of the fake runner; `calls` is what was asked of it."""

    domid: int
    config: DomainConfig
    memory: GuestMemory
    types: np.ndarray
    records: list = field(default_factory=list)
    state: DomainState = DomainState.PAUSED
    note: str = ""
    cpu_time_s: float = 1.5
    start_time_s: float = 1e9
    calls: list = field(default_factory=list)
    end_reason: str = ""
    exit_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_CLOEXEC))

    def end(self, reason):
        self.end_reason, self.state = reason, DomainState.SHUTDOWN
        os.eventfd_write(self.exit_fd, 1)

    def set_aside(self, name, uuid):
        self.config = self.config.with_values(name=name, uuid=uuid)

    def close(self):
        self.calls.append("close")

    def opening(self):
        yield from opening()

    def closing(self):
        yield from [*closing(), End()]

    def track_dirty(self):
        self.calls.append("track_dirty")

    def take_dirty(self):
        return DirtyBitmap.of(len(self.types), u64(3))

    def pause(self):
        self.state = DomainState.PAUSED

    def unpause(self):
        self.state = DomainState.RUNNING

    def suspend(self):
        self.state = DomainState.SUSPENDED

    def resume(self):
        self.state, self.note = DomainState.RUNNING, ""

    def hold(self, reason):
        self.note = reason

    def rename(self, name):
        self.config = self.config.renamed(name)

    def shutdown(self, reason):
        self.calls.append(reason)

    def console(self):
        return b"tick"

    def destroy(self):
        self.calls.append("destroy")


class FakeArriving:
    """A process that waits; `start` gives its memory to the guest."""

    def __init__(self, runner, config, domid):
        self.runner, self.config, self.domid = runner, config, domid
        self.memory = GuestMemory.anonymous("fake")
        self.ended = ""

    def start(self, types, records):
        if self.runner.fault:
            raise HypervisorError(self.runner.fault)
        self.ended = "started"
        running = FakeRunning(self.domid, self.config, self.memory, types.copy(), list(records))
        self.runner.started.append(running)
        return running

    def discard(self):
        self.ended = self.ended or "discarded"


class FakeRunner:
    def __init__(self, adopted=(), *, receives=True):
        self.adopted = adopted
        self.receives = receives
        self.started = []
        self.arriving = []
        self.fault = ""

    def can_run(self, config):
        return self.receives and config.name != "stranger"

    def create(self, config, *, domid):
        return self._start(domid, config, b"\0" * 4096, np.zeros(1, np.uint8), [])

    def start_from(self, memory, types, records, config, *, domid):
        pages = b"".join(memory.read(np.arange(memory.nr_pages, dtype=np.uint64)))
        return self._start(domid, config, pages, types.copy(), list(records))

    def receive(self, config, *, domid):
        self.arriving.append(FakeArriving(self, config, domid))
        return self.arriving[-1]

    def adopt(self):
        return self.adopted

    def _start(self, domid, config, pages, types, records):
        memory = GuestMemory.anonymous("fake")
        memory.write(0, pages)
        running = FakeRunning(domid, config, memory, types, records)
        self.started.append(running)
        return running


@pytest.fixture
def runner():
    return FakeRunner()


@pytest.fixture
def store(tmp_path, runner):
    store = StoreHypervisor(Paths(tmp_path), runner=runner)
    yield store
    store.close()


def restore(store, config=None, migration_id=""):
    with store.restore(config or guest(), migration_id=migration_id) as session:
        send_guest(session, span(0, 16))
        return session.complete()


def image_exists(tmp_path) -> bool:
    return (Paths(tmp_path).store_dir / UUID).exists()


def at_rest(store, runner, migration_id=""):
    """Have a guest come in to rest, as to a host whose runner did not know it then."""
    runner.receives = False
    domain = restore(store, migration_id=migration_id)
    runner.receives = True
    return domain


def incoming(tmp_path) -> list[str]:
    return [path.name for path in (Paths(tmp_path).store_dir / "incoming").iterdir()]


def test_a_guest_arrives_in_the_process_that_will_run_it(tmp_path, store, runner):
    domain = restore(store, migration_id="ab12")
    (running,) = runner.started
    assert running.memory is runner.arriving[0].memory and running.memory.pages[15, 0] == 1
    assert running.types.tolist() == [0] * 16
    assert plain(running.records) == plain([*opening(), *closing()])
    assert store.domains()[0].state is DomainState.PAUSED
    assert not image_exists(tmp_path) and incoming(tmp_path) == []
    assert store.find("web01") == domain == store.arrival("ab12")


def test_a_guest_that_does_not_arrive_whole_ends_with_its_process(tmp_path, store, runner):
    with pytest.raises(KeyError), store.restore(guest()) as session:
        send_guest(session, span(0, 16))
        raise KeyError
    assert runner.arriving[0].ended == "discarded" and incoming(tmp_path) == []
    runner.fault = "page types that no guest has"
    with pytest.raises(HypervisorError, match="page types"):
        restore(store)
    assert runner.arriving[1].ended == "discarded" and incoming(tmp_path) == []
    assert store.domains() == []


def test_what_arrived_in_part_is_copied_to_be_kept(store, runner):
    with store.restore(guest()) as session:
        send_guest(session, span(0, 16))
        session.keep("the peer went away")
    (partial,) = store.partials()
    assert (partial.path / "memory").read_bytes() == b"\1" * 16 * 4096
    assert runner.arriving[0].ended == "discarded"


def test_a_process_whose_guest_was_still_arriving_is_ended(tmp_path, store, runner):
    """The daemon ended between the start of the process and the removal of its directory."""
    with store.restore(guest(), migration_id="ab12") as session:
        send_guest(session, span(0, 16))
        (directory,) = (Paths(tmp_path).store_dir / "incoming").iterdir()
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
        session.complete()
    store.close()
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    again = StoreHypervisor(Paths(tmp_path), runner=FakeRunner(runner.started))
    assert "destroy" in runner.started[0].calls
    assert again.domains() == [] and again.arrival("ab12") is None and incoming(tmp_path) == []
    again.close()


def test_the_arrival_of_a_guest_that_is_gone_is_forgotten(tmp_path, store, runner):
    domain = restore(store, migration_id="ab12")
    store.close()
    StoreHypervisor(Paths(tmp_path), runner=FakeRunner()).close()
    other = FakeRunning(domain.domid, guest(), GuestMemory.anonymous("f"), np.zeros(1, np.uint8))
    again = StoreHypervisor(Paths(tmp_path), runner=FakeRunner([other]))
    assert again.find("web01") == domain and again.arrival("ab12") is None
    again.close()


def test_only_the_same_migration_may_bring_a_name_twice(store):
    domain = restore(store)
    with store.save(domain, migration_id="ab12"):
        for other in ("", "cd34"):
            with pytest.raises(DomainExists), store.restore(guest(), migration_id=other):
                pass
        with store.restore(guest(), migration_id="ab12") as session:
            send_guest(session, span(0, 16))
            twin = session.complete()
    assert store.arrival("ab12") == twin != domain
    with pytest.raises(DomainExists), store.restore(guest(), migration_id="ab12"):
        pass


def test_a_guest_at_rest_is_started_when_it_is_unpaused(tmp_path, store, runner):
    domain = at_rest(store, runner)
    assert runner.started == [] and image_exists(tmp_path)
    store.unpause(domain)
    (running,) = runner.started
    assert running.domid == domain.domid and not image_exists(tmp_path)
    assert running.memory.pages[15, 0] == 1 and running.types.tolist() == [0] * 16
    assert plain(running.records) == plain([*opening(), *closing()])
    (summary,) = store.domains()
    assert summary.state is DomainState.RUNNING and summary.cpu_time_s == 1.5
    assert store.find("web01") == domain and store.running(domain) is running


def test_a_guest_the_runner_does_not_know_only_rests(store):
    with pytest.raises(DomainStateError, match="without Xen"):
        store.unpause(restore(store, guest("stranger")))
    with pytest.raises(Unsupported):
        store.create(guest("stranger", "00000000-0000-4000-8000-000000000009"))


def test_a_created_guest_is_paused_and_keeps_its_name(store):
    domain = store.create(guest())
    assert store.domains()[0].state is DomainState.PAUSED
    with pytest.raises(DomainExists):
        store.create(guest())
    store.unpause(domain)
    store.pause(domain)
    store.shutdown(domain, "poweroff")
    assert store.running(domain).calls == ["poweroff"]
    assert store.rename(domain, "web02").name == store.find("web02").name


def test_a_running_guest_is_a_live_source(store):
    domain = restore(store)
    store.unpause(domain)
    with store.save(domain) as source:
        assert source.live and source.nr_pages == 16
        source.track_dirty()
        assert contents(source) == dict.fromkeys(range(16), (0, 1))
        source.suspend()
        assert source.take_dirty().pfns().tolist() == [3]
        assert plain(source.closing()) == plain([*closing(), End()])
        source.relinquish()
    assert store.domains() == []


def test_a_running_guest_goes_on_after_a_save_without_end(store):
    domain = restore(store)
    store.unpause(domain)
    with pytest.raises(KeyError), store.save(domain) as source:
        source.suspend()
        raise KeyError
    assert store.domains()[0].state is DomainState.RUNNING


def test_a_running_guest_in_doubt_is_held_suspended(store):
    domain = restore(store)
    store.unpause(domain)
    with pytest.raises(KeyError), store.save(domain) as source:
        source.suspend()
        list(source.closing())
        raise KeyError
    (summary,) = store.domains()
    assert summary.state is DomainState.SUSPENDED and summary.note
    with pytest.raises(DomainStateError):
        store.unpause(domain)
    store.release_hold(domain)
    assert store.domains()[0].state is DomainState.RUNNING


def test_an_operator_holds_and_releases_a_running_guest(store):
    domain = restore(store)
    store.unpause(domain)
    store.hold(domain, "10.0.0.2 may own it")
    (summary,) = store.domains()
    assert (summary.state, summary.note) == (DomainState.SUSPENDED, "10.0.0.2 may own it")
    store.release_hold(domain)
    assert store.domains()[0].state is DomainState.RUNNING
    store.release_hold(domain)
    assert store.domains()[0].state is DomainState.RUNNING


def test_running_guests_are_adopted_after_a_restart(tmp_path, store, runner):
    domain = restore(store, migration_id="ab12")
    store.unpause(domain)
    assert store.arrival("ab12") == domain
    store.close()
    again = StoreHypervisor(Paths(tmp_path), runner=FakeRunner(runner.started))
    assert again.find("web01") == domain == again.arrival("ab12")
    assert again.domains()[0].state is DomainState.RUNNING
    again.close()


def test_a_start_cut_short_leaves_the_image(tmp_path, store, runner):
    domain = at_rest(store, runner)
    store.close()
    half_started = FakeRunning(
        domain.domid, guest(), GuestMemory.anonymous("fake"), np.zeros(1, np.uint8)
    )
    again = StoreHypervisor(Paths(tmp_path), runner=FakeRunner([half_started]))
    assert half_started.calls == ["destroy"]
    assert again.domains()[0].state is DomainState.PAUSED and image_exists(tmp_path)
    again.close()


def test_an_image_that_cannot_be_removed_still_counts(tmp_path, store, runner, monkeypatch):
    domain = at_rest(store, runner)

    def fail(_path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store._directory, "discard", fail)
    with pytest.raises(Exception, match="Input/output"):
        store.unpause(domain)
    assert runner.started[0].calls == ["destroy"]
    assert runner.started[0].state is DomainState.PAUSED
    assert store.domains()[0].state is DomainState.PAUSED and image_exists(tmp_path)


def test_the_end_of_a_guest_is_told_once_and_leaves_it(store, runner):
    first, second = restore(store), store.create(guest("web02", OTHER_UUID))
    runner.started[0].end("reboot")
    told = queue.Queue()
    store.watch_ends(lambda *end: told.put(end))
    assert told.get(timeout=80) == (first, "reboot")
    runner.started[1].end("")
    assert told.get(timeout=80) == (second, "crash")
    assert [found.domid for found in store.domains()] == [first.domid, second.domid]


def test_a_destroyed_guest_ends_without_a_word(store, runner):
    first, second = restore(store), store.create(guest("web02", OTHER_UUID))
    told = queue.Queue()
    store.watch_ends(lambda *end: told.put(end))
    store.destroy(first)
    runner.started[0].end("poweroff")
    runner.started[1].end("poweroff")
    assert told.get(timeout=80) == (second, "poweroff") and told.empty()


def test_an_ended_guest_makes_room_under_another_name(store, runner):
    domain = restore(store)
    runner.started[0].end("crash")
    aside = store.set_aside(domain, "web01-1", OTHER_UUID)
    again = store.create(guest())
    assert store.find("web01") == again and store.find(OTHER_UUID) == aside
    store.destroy(aside)
    assert [found.domid for found in store.domains()] == [again.domid]


def test_a_store_that_closes_lets_go_of_its_guests(store, runner):
    restore(store)
    store.close()
    assert runner.started[0].calls == ["close"]
