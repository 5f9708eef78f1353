"""Test guests: their memory, what they do in it, and their processes, which are real here."""

import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from xendpy.errors import DomainStateError, HypervisorError
from xendpy.guest.domain import DomainConfig, DomainState
from xendpy.guest.memory import GuestMemory
from xendpy.guest.pages import PAGE_SIZE, PageType
from xendpy.hypervisor import testguest_layout as layout
from xendpy.hypervisor import testguest_records as guest_records
from xendpy.hypervisor.testguest import TestGuestRunner, is_test_guest
from xendpy.hypervisor.testguest_ticker import Ticker
from xendpy.stream.records import (
    End,
    P2mFrames,
    PvInfo,
    SharedInfo,
    StreamStart,
    VcpuContext,
    VcpuContextKind,
)

UUID = "6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10"


def config(extra="", *, memory=2, vcpus=1, kernel="xendpy:ticker", image="linux"):
    text = (
        f"(domain (name testvm1) (uuid {UUID}) (memory {memory}) (vcpus {vcpus})"
        f" (image ({image} (kernel {kernel}) (args '{extra}'))))"
    )
    return DomainConfig.parse(text.encode())


def until(condition, *, deadline_s=30.0):
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


# Options


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("", layout.TickerOptions()),
        ("root=/dev/xvda1 ro console=hvc0", layout.TickerOptions()),
        ("tick=0.1", layout.TickerOptions(tick_s=0.1)),
        ("dirty=200MB/s wss=256MB", layout.TickerOptions(dirty_rate=2e8, wss=256_000_000)),
        ("dirty=1.5MiB/s", layout.TickerOptions(dirty_rate=1.5 * 2**20)),
        ("wss=4096", layout.TickerOptions(wss=4096)),
        ("fill=random", layout.TickerOptions(fill=True)),
    ],
)
def test_extra_is_read(extra, expected):
    assert layout.TickerOptions.parse(extra) == expected


@pytest.mark.parametrize("extra", ["tick=0", "tick=x", "dirty=fast", "wss=1XB", "fill=zero"])
def test_impossible_extra_is_refused(extra):
    with pytest.raises(ValueError):
        layout.TickerOptions.parse(extra)


# Memory


class Box:
    """A guest without a process: its memory, its map, its loop."""

    def __init__(self, extra="", *, nr_pages=1024, vcpus=1):
        self.ram = np.zeros((nr_pages, PAGE_SIZE), np.uint8)
        self.dirty = np.zeros(nr_pages, np.uint8)
        layout.build(self.ram, vcpus=vcpus, options=layout.TickerOptions.parse(extra))
        self.ticker = self.again("et-virt08")

    def again(self, host_name):
        return Ticker(self.ram, self.dirty, host_name=host_name)


@pytest.mark.parametrize("nr_pages", [256, 1024, 100_000, 1 << 18])
def test_areas_follow_each_other_within_memory(nr_pages):
    place = layout.Layout(nr_pages)
    borders = [layout.P2M_PFN, place.log_first, place.sequence_first, place.heap_first, nr_pages]
    assert borders == sorted(set(borders))
    assert place.p2m_pages * 512 >= nr_pages
    assert (place.heap_first - place.sequence_first) * 1024 >= place.heap_pages


def test_memory_holds_what_a_restorer_of_xen_looks_for():
    box = Box()
    types = layout.Layout(1024).types()
    start_info = box.ram[layout.START_INFO_PFN].tobytes()
    assert start_info[:15] == b"xen-3.0-x86_64\0"
    assert struct.unpack_from("<Q", start_info, 32) == (1024,)
    store_mfn, console_mfn = struct.unpack_from("<Q8xQ", start_info, 56)
    assert types[[store_mfn, console_mfn]].tolist() == [PageType.NOTAB, PageType.NOTAB]
    p2m = box.ram[10:12].tobytes()
    assert struct.unpack("<1024Q", p2m) == tuple(range(1024))
    # L4 -> L3 -> L2 -> L1, each entry present and a pfn of the next lower type.
    pfn = layout.L4_PFN
    assert types[pfn] == PageType.L4TAB_PIN
    for lower in (PageType.L3TAB, PageType.L2TAB, PageType.L1TAB, PageType.NOTAB):
        (entry,) = struct.unpack_from("<Q", box.ram[pfn].tobytes())
        assert entry & 1
        pfn = entry >> 12
        assert types[pfn] == lower
    assert np.count_nonzero(types) == 4


def test_guest_dirties_at_its_rate_and_marks_what_it_changed():
    box = Box("dirty=40960000/s wss=400KB", nr_pages=1024)  # 10 000 pages a second
    before = box.ram.copy()
    for _ in range(100):
        box.ticker.advance(0.002)
    assert 1900 <= int(box.ticker.state["writes"]) <= 2000
    changed = (box.ram != before).any(axis=1)
    assert np.array_equal(changed, box.dirty.astype(bool))
    wss = 400_000 // 4096
    heap = layout.Layout(1024).heap_first
    assert changed[heap : heap + wss].all()
    assert not changed[heap + wss :].any()
    assert box.ticker.check() == []


def test_guest_kept_from_running_catches_up_with_little():
    box = Box("dirty=40960000/s")
    for _ in range(200):
        box.ticker.advance(0.0)
    box.ticker.advance(3600.0)
    while box.ticker.advance(0.0) == 0.0:
        pass
    assert int(box.ticker.state["writes"]) <= 0.06 * 10_000 + 128


def test_contents_change_with_every_write():
    box = Box("dirty=4096000/s wss=4KB")
    heap = layout.Layout(1024).heap_first
    seen = set()
    for _ in range(50):
        box.ticker.advance(0.005)
        seen.add(box.ram[heap].tobytes())
    assert len(seen) >= 40


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda box, heap: box.ram[heap].fill(0), "carries sequence 0, expected"),
        (lambda box, heap: box.ram[heap + 3, 4000:].fill(0), "carries sequence"),
        (lambda box, heap: box.ram[heap].__setitem__(slice(None), box.ram[heap + 1]), "carries"),
        (lambda box, heap: box.ram[10].fill(0), "the p2m has changed"),
        (lambda box, heap: box.ram[layout.L4_PFN].fill(0), "page 0x6, which never changes"),
        (lambda box, heap: box.ram[heap - 1].fill(0), "sequences add to"),
    ],
)
def test_check_finds_lost_and_torn_pages(damage, told):
    box = Box("dirty=40960000/s fill=random", nr_pages=2048)
    box.ticker.fill()
    for _ in range(20):
        box.ticker.advance(0.01)
    assert box.ticker.check() == []
    damage(box, layout.Layout(2048).heap_first)
    assert told in "\n".join(box.ticker.check())


def test_state_page_of_another_moment_shows():
    box = Box("dirty=40960000/s")
    box.ticker.advance(0.05)
    stale = box.ram[layout.STATE_PFN].copy()
    box.ticker.advance(0.05)
    box.ram[layout.STATE_PFN] = stale
    assert any("writes counted" in fault for fault in box.ticker.check())


def test_log_goes_on_where_it_was_under_another_host():
    box = Box("tick=1")
    for _ in range(8):
        box.ticker.advance(0.5)
    there = box.again("et-virt07")
    for _ in range(4):
        there.advance(0.5)
    lines = layout.read_log(box.ram)[0].decode().splitlines()
    assert [line.split()[0] for line in lines] == ["et-virt08"] * 4 + ["et-virt07"] * 2
    assert [line.split()[-1] for line in lines] == [f"#{tick}" for tick in range(1, 7)]
    assert int(box.ticker.state["incarnation"]) == 2


def test_log_ring_keeps_whole_lines():
    box = Box(nr_pages=256)  # 64 KiB of log
    for number in range(3000):
        box.ticker.log(f"line {number} " + "x" * (number % 50))
    text, end = layout.read_log(box.ram)
    numbers = [int(line.split()[1]) for line in text.decode().splitlines()]
    assert numbers == list(range(numbers[0], 3000))
    assert len(text) > 16 * PAGE_SIZE - 3 * 1024 - PAGE_SIZE
    box.ticker.log("more")
    assert layout.read_log(box.ram, end)[0] == b"more\n"


# Records


def test_records_are_those_of_a_64_bit_guest():
    box = Box("tick=1", vcpus=2)
    box.ticker.advance(1.0)
    start, info, frames = guest_records.opening(box.ram)
    assert isinstance(start, StreamStart) and start.p2m_size == 1024
    assert isinstance(info, PvInfo) and len(info.context) == 5168
    assert isinstance(frames, P2mFrames) and frames.frames.tolist() == [10, 11]
    assert (frames.first_pfn, frames.last_pfn) == (0, 1023)
    tail = list(guest_records.closing(box.ram))
    contexts = [record.blob for record in tail if isinstance(record, VcpuContext)]
    assert [len(blob) for blob in contexts] == [5168, 128, 5168, 128]
    first = contexts[0]
    assert struct.unpack_from("<Q", first, 616) == (layout.START_INFO_PFN,)  # rdx
    assert struct.unpack_from("<Q", first, 608) == (1,)  # rcx: ticks
    assert struct.unpack_from("<Q", first, 4832) == (layout.GDT_PFN,)
    assert struct.unpack_from("<Q", first, 4960) == (512,)
    assert struct.unpack_from("<Q", first, 4992) == (0,)  # cr1: no user page table
    assert struct.unpack_from("<Q", first, 5008) == (layout.L4_PFN << 12,)
    (page,) = (record.page for record in tail if isinstance(record, SharedInfo))
    assert len(page) == 4096
    assert struct.unpack_from("<QQ", page, 3088) == (1023, 0)  # max_pfn, frame list list
    assert page[2560:3072] == b"\xff" * 512
    assert isinstance(tail[-1], End)


def replaced(records, offset, value):
    """Return the records with 8 bytes of vcpu 0's context changed."""
    out = []
    for record in records:
        if isinstance(record, VcpuContext) and record.kind is VcpuContextKind.BASIC:
            blob = bytearray(record.blob)
            struct.pack_into("<Q", blob, offset, value)
            record = VcpuContext(record.vcpu_id, record.kind, bytes(blob))
        out.append(record)
    return out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda records: replaced(records, 616, 99), "rdx is 0x63"),
        (lambda records: replaced(records, 608, 7), "rcx is 0x7"),
        (lambda records: replaced(records, 5008, 0), "cr3 is 0x0"),
        (lambda records: [r for r in records if not isinstance(r, VcpuContext)], "vcpus \\[\\]"),
        (lambda records: [r for r in records if not isinstance(r, SharedInfo)], "no shared info"),
    ],
)
def test_records_of_another_guest_or_moment_are_refused(change, told):
    box = Box()
    records = list(guest_records.closing(box.ram))
    guest_records.require_records(box.ram, records)
    with pytest.raises(ValueError, match=told):
        guest_records.require_records(box.ram, change(records))


# Processes


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
    resting = GuestMemory.open(tmp_path / "image", writable=False)
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


def test_foreign_memory_is_not_started(runner):
    image = GuestMemory.anonymous("image")
    image.write(0, bytes(PAGE_SIZE * 512))
    with pytest.raises(HypervisorError, match="state page is missing"):
        runner.start_from(image, np.zeros(512, np.uint8), [], config(), domid=1)
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


def test_reboot_begins_anew(runner):
    guest = runner.create(config("tick=0.01 dirty=20MB/s"), domid=1)
    guest.unpause()
    until(lambda: guest.console().count(b"\n") > 5)
    guest.pause()
    writes = int(layout.view_state(guest.memory.pages)["writes"])
    guest.take_dirty()
    guest.shutdown("reboot")
    assert guest.console() == b""
    assert guest.take_dirty().count == guest.memory.nr_pages
    assert writes > int(layout.view_state(guest.memory.pages)["writes"]) == 0
    guest.unpause()
    until(lambda: guest.console().startswith(b"et-virt08"))
    assert guest.check() == []


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
