"""Test guests as processes, which are real here."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.peers.ticker import config
from xendpy.errors import DomainStateError, HypervisorError
from xendpy.guest.domain import DomainState
from xendpy.guest.memory import GuestMemory
from xendpy.guest.memoryfile import MemoryFile
from xendpy.guest.pages import PAGE_SIZE
from xendpy.hypervisor import testguest_layout as layout
from xendpy.hypervisor import testguest_link
from xendpy.hypervisor.testguest import TestGuestRunner, is_test_guest


def until(condition, *, deadline_s=120.0):
    """Wait for `condition` to hold; a guest's ticks cannot be waited for otherwise."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        pause.wait(0.002)


@pytest.fixture
def runner(tmp_path):
    """A runner whose guests end with the test, however it ends."""
    runner = TestGuestRunner(tmp_path / ("r" * 60), host_name="et-virt08", launcher=())
    yield runner
    for guest in runner.adopt():
        guest.destroy()


@pytest.mark.parametrize(
    ("kernel", "expected"), [("xendpy:ticker", True), ("/boot/vmlinuz", False), ("", False)]
)
def test_the_kernel_makes_a_test_guest(kernel, expected):
    assert is_test_guest(config(kernel=kernel or "''")) is expected


def test_created_guest_is_paused_and_ticks_when_unpaused(runner):
    guest = runner.create(config("tick=0.01", vcpus=2), domid=7)
    assert (guest.state, guest.domid, guest.note) == (DomainState.PAUSED, 7, "")
    assert guest.console() == b""
    guest.unpause()
    until(lambda: guest.console().count(b"\n") >= 3)
    assert guest.state is DomainState.BLOCKED  # it does nothing between ticks
    lines = guest.console().decode().splitlines()
    assert all(line.startswith("et-virt08 ") for line in lines)
    assert lines[0].endswith("#1")
    assert guest.check() == []
    assert guest.cpu_time_s > 0


def test_stopped_guest_writes_nothing(runner):
    guest = runner.create(config("tick=0.001 dirty=50MB/s"), domid=1)
    guest.unpause()
    for stop, go in ((guest.pause, guest.unpause), (guest.suspend, guest.resume)):
        guest.track_dirty()
        until(lambda: guest.take_dirty().count > 0)
        stop()
        guest.take_dirty()
        before = guest.memory.pages.copy()
        for _ in range(20):
            assert guest.check() == []  # each turns its loop once more
        assert guest.take_dirty().count == 0
        assert np.array_equal(guest.memory.pages, before)
        go()
    assert guest.state is DomainState.RUNNING
    until(lambda: guest.take_dirty().count > 0)


def test_resume_leaves_a_paused_guest_paused(runner):
    guest = runner.create(config(), domid=1)
    guest.suspend()
    assert guest.state is DomainState.SUSPENDED
    with pytest.raises(HypervisorError, match="the guest is suspended"):
        guest.unpause()
    guest.resume()
    assert guest.state is DomainState.PAUSED


def test_filled_memory_has_no_empty_page(runner):
    guest = runner.create(config("fill=random"), domid=1)
    heap = guest.memory.pages[layout.Layout(512).heap_first :]
    assert heap.any(axis=1).all()
    assert guest.check() == []


def image_of(guest, image, *, drop_last=False):
    """Copy a running guest as a migration does; return the records that end the stream."""
    records = list(guest.opening())
    guest.track_dirty()
    dirty = np.arange(guest.memory.nr_pages, dtype=np.uint64)
    for _ in range(6):
        for pfn in dirty.tolist():
            image.write(pfn, guest.memory.pages[pfn].data)
        until(lambda: guest.console().count(b"\n") > 2)
        dirty = guest.take_dirty().pfns()
    if drop_last:  # there must be heap pages to miss, however quick the copy was
        seen = guest.console().count(b"\n")
        until(lambda: guest.console().count(b"\n") > seen + 3)
    guest.suspend()
    if not drop_last:
        dirty = np.union1d(dirty, guest.take_dirty().pfns())
        for pfn in dirty.tolist():
            image.write(pfn, guest.memory.pages[pfn].data)
    return [*records, *guest.closing()]


def migrated(guest, runner, tmp_path, *, by):
    """Copy a running guest to `runner`, directly or by way of an image file."""
    if by == "receive":
        arriving = runner.receive(guest.config, domid=3)
        return arriving.start(guest.types, image_of(guest, arriving.memory))
    image = GuestMemory(os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT))
    records = image_of(guest, image)
    image.finish(guest.memory.nr_pages)
    image.close()
    resting = MemoryFile(tmp_path / "image")
    try:
        return runner.start_from(resting, guest.types, records, guest.config, domid=3)
    finally:
        resting.close()


@pytest.mark.parametrize("by", ["receive", "start_from"])
def test_copy_taken_while_dirtying_goes_on_elsewhere(runner, tmp_path, by):
    guest = runner.create(config("tick=0.01 dirty=100MB/s wss=1MB", vcpus=2), domid=1)
    guest.unpause()
    there = TestGuestRunner(tmp_path / "there", host_name="et-virt07", launcher=())
    arrived = migrated(guest, there, tmp_path, by=by)
    try:
        assert arrived.state is DomainState.PAUSED
        assert np.array_equal(arrived.memory.pages, guest.memory.pages)
        assert arrived.check() == []
        left = guest.console()
        guest.destroy()
        arrived.unpause()
        until(lambda: arrived.console().count(b"et-virt07") > 2)
        assert arrived.console().startswith(left)
        ticks = [int(line.rpartition(b"#")[2]) for line in arrived.console().splitlines()]
        assert ticks == list(range(1, len(ticks) + 1))
        assert arrived.check() == []
    finally:
        arrived.destroy()


def test_copy_without_the_last_pages_is_found_out(runner, tmp_path):
    guest = runner.create(config("tick=0.01 dirty=100MB/s wss=1MB"), domid=1)
    guest.unpause()
    arriving = runner.receive(guest.config, domid=2)
    records = image_of(guest, arriving.memory, drop_last=True)
    # The state page is of the moment of suspension, so that the records fit; others are not.
    arriving.memory.write(layout.STATE_PFN, guest.memory.pages[layout.STATE_PFN].data)
    assert arriving.start(guest.types, records).check() != []


def test_a_process_that_does_not_come_up_is_said_to_be_late(tmp_path, monkeypatch):
    monkeypatch.setattr(testguest_link, "START_S", 0.0)
    fds = tuple(os.memfd_create("late") for _ in range(3))
    with pytest.raises(HypervisorError, match="did not come up within 0 s: is this host"):
        testguest_link.start(tmp_path / "late.sock", fds, ["--host-name=a", "--waiting"], ())
    for fd in fds:
        os.close(fd)


def test_foreign_memory_is_not_started(runner, tmp_path):
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, PAGE_SIZE * 512)
    image = MemoryFile(path)
    with pytest.raises(HypervisorError, match="state page is missing"):
        runner.start_from(image, np.zeros(512, np.uint8), [], config(), domid=1)
    image.close()
    assert runner.adopt() == []


def test_guest_that_still_waits_goes_with_its_daemon(runner):
    arriving = runner.receive(config(), domid=1)
    pidfd = os.pidfd_open(arriving._link.pid)
    arriving._link.close()  # as the end of the daemon's process does
    ended, _, _ = select.select([pidfd], [], [], 30)
    os.close(pidfd)
    assert ended
    assert runner.adopt() == []


def test_discarded_arrival_leaves_nothing(runner):
    arriving = runner.receive(config(), domid=1)
    arriving.memory.write(0, bytes(PAGE_SIZE * 300))
    arriving.discard()
    arriving.discard()
    assert list(runner._dir.iterdir()) == []


CREATOR = """
import sys
from pathlib import Path
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.testguest import TestGuestRunner
runner = TestGuestRunner(Path(sys.argv[1]), host_name="et-virt08", launcher=())
running = runner.create(DomainConfig.parse(sys.argv[2].encode()), domid=4)
running.unpause()
held = runner.create(DomainConfig.parse(sys.argv[3].encode()), domid=5)
held.rename("migrating-two")
held.hold("in doubt")
print("ready", flush=True)
sys.stdin.read()
"""


def test_guests_outlive_a_killed_daemon(runner, tmp_path):
    one = config("tick=0.01").encode()
    two = one.replace(b"6f3e2a1c", b"00000001")
    run_dir = str(runner._dir.parent)
    argv = [sys.executable, "-c", CREATOR, run_dir, one.decode(), two.decode()]
    pipe = subprocess.PIPE
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=env) as creator:
        assert creator.stdout.readline() == b"ready\n"
        creator.send_signal(signal.SIGKILL)
    guests = {guest.domid: guest for guest in runner.adopt()}
    assert sorted(guests) == [4, 5]
    before = guests[4].console().count(b"\n")
    until(lambda: guests[4].console().count(b"\n") > before)
    assert guests[4].config.name == "testvm1"
    assert guests[5].state is DomainState.SUSPENDED
    assert (guests[5].note, guests[5].config.name) == ("in doubt", "migrating-two")
    guests[5].resume()
    assert (guests[5].note, guests[5].state) == ("", DomainState.PAUSED)
    for guest in guests.values():
        guest.close()
    again = {guest.domid: guest for guest in runner.adopt()}
    assert again[5].note == ""
    for guest in again.values():
        guest.destroy()
    assert runner.adopt() == []
    assert list(runner._dir.iterdir()) == []


def test_guest_whose_process_is_killed_is_gone(runner):
    guest = runner.create(config(), domid=1)
    os.kill(guest._link.pid, signal.SIGKILL)
    until(lambda: guest.state is DomainState.CRASHED)
    with pytest.raises(HypervisorError):
        guest.unpause()
    assert runner.adopt() == []
    guest.destroy()
    guest.destroy()


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("poweroff", DomainState.SHUTDOWN),
        ("halt", DomainState.SHUTDOWN),
        ("crash", DomainState.CRASHED),
    ],
)
def test_shutdown_ends_the_process(runner, reason, state):
    guest = runner.create(config(), domid=1)
    guest.unpause()
    pidfd = os.pidfd_open(guest._link.pid)
    guest.shutdown(reason)
    assert guest.state is state
    ended, _, _ = select.select([pidfd], [], [], 0)
    os.close(pidfd)
    assert ended


def test_ended_guest_tells_why_and_keeps_its_memory(runner):
    guest = runner.create(config("tick=0.01"), domid=1)
    guest.unpause()
    until(lambda: guest.console().count(b"\n") > 5)
    assert guest.end_reason == "" and not select.select([guest.exit_fd], [], [], 0)[0]
    guest.shutdown("reboot")
    assert guest.end_reason == "reboot" and guest.state is DomainState.SHUTDOWN
    assert select.select([guest.exit_fd], [], [], 20)[0]
    assert guest.console().count(b"\n") > 5
    guest.set_aside("testvm1-1", "00000000-0000-4000-8000-00000000000a")
    assert guest.config.name == "testvm1-1"
    guest.destroy()
    assert guest.end_reason == "reboot"


def test_suspended_guest_is_not_shut_down(runner):
    guest = runner.create(config(), domid=1)
    guest.shutdown("suspend")
    assert guest.state is DomainState.SUSPENDED
    with pytest.raises(DomainStateError):
        guest.shutdown("poweroff")
    assert guest.state is DomainState.SUSPENDED


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (config("dirty=fast"), "expected a size"),
        (config(vcpus=33), "at most 32 vcpus"),
        (config(image="hvm"), "para-virtualized"),
    ],
)
def test_impossible_config_is_refused(runner, bad, told):
    with pytest.raises(HypervisorError, match=told):
        runner.create(bad, domid=1)
    assert runner.adopt() == []


def test_process_that_does_not_come_up_says_why(tmp_path):
    runner = TestGuestRunner(tmp_path, host_name="a", launcher=("/bin/false",))
    with pytest.raises(HypervisorError, match="status 1"):
        runner.create(config(), domid=1)
    assert list((tmp_path / "testguest").iterdir()) == []
