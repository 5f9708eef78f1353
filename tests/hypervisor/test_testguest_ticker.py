"""A test guest's memory, and what it does in it."""

import struct

import numpy as np
import pytest

from tests.peers.ticker import Box
from xendpy.guest.pages import PAGE_SIZE, PageType
from xendpy.hypervisor import testguest_layout as layout


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
