"""Where everything is in a test guest's memory: a 64-bit PV guest of the smallest kind.

The guest sees machine frames as its own frame numbers (mfn = pfn). So its memory is at all times
in the canonical form that the legacy stream wants: page-table entries and p2m entries hold pfns.

    pfn 0   state: the guest's counters (STATE), all that it knows about itself
        1   start_info            2  xenstore ring     3  console ring     4  kernel stack
        5   GDT                   6  L4, pinned        7  L3    8  L2    9  L1
       10   p2m, 512 entries a page
     then   log, a ring of text; sequence numbers, uint32 per heap page; heap

Source of offsets: xen/include/public/xen.h and arch-x86_64.h, unchanged from 3.1 to 4.x. Imports
numpy alone, because the guest's own process imports this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xendpy.guest.pages import PAGE_SHIFT, PAGE_SIZE, PageType, Types

MAGIC = b"XPTICKER"
VERSION = 1

STATE_PFN, START_INFO_PFN, STORE_PFN, CONSOLE_PFN, STACK_PFN = range(5)
GDT_PFN, L4_PFN, L3_PFN, L2_PFN, L1_PFN, P2M_PFN = range(5, 11)
ENTRIES = 512  # of 8 bytes, in a page table or a p2m page
MIN_PAGES = 256  # 1 MiB
MAX_LOG_PAGES = 64
MAX_LINE = 1024  # bytes, of the log

# Page-table entry flags.
PRESENT, WRITABLE, USER, ACCESSED, DIRTY = 0x1, 0x2, 0x4, 0x20, 0x40
TABLE_FLAGS = PRESENT | WRITABLE | USER | ACCESSED

STATE = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("vcpus", "<u4"),
        ("nr_pages", "<u8"),
        # As told in `extra`.
        ("tick_s", "<f8"),
        ("dirty_rate", "<f8"),  # pages a second
        ("wss_pages", "<u8"),
        ("fill", "<u4"),
        ("incarnation", "<u4"),  # how many processes it has lived in
        # What the guest has done.
        ("ticks", "<u8"),
        ("log_end", "<u8"),  # bytes ever logged; modulo the ring = next offset
        ("cursor", "<u8"),  # next heap page to dirty
        ("writes", "<u8"),  # heap pages ever dirtied
        ("running_s", "<f8"),
        ("cpu_s", "<f8"),
        ("since_tick_s", "<f8"),
        ("credit", "<f8"),  # heap pages that may be dirtied at once
    ]
)


def structure(itemsize: int, *fields: tuple[str, str, int]) -> np.dtype[np.void]:
    """Return the dtype of a C structure, of which only some (name, format, offset) count."""
    names, formats, offsets = zip(*fields, strict=True)
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize}
    return np.dtype(layout)  # type: ignore[call-overload, no-any-return] # numpy's stub wants a TypedDict


START_INFO = structure(
    112,
    ("magic", "S32", 0),
    ("nr_pages", "<u8", 32),
    ("shared_info", "<u8", 40),
    ("flags", "<u4", 48),
    ("store_mfn", "<u8", 56),
    ("store_evtchn", "<u4", 64),
    ("console_mfn", "<u8", 72),
    ("console_evtchn", "<u4", 80),
    ("pt_base", "<u8", 88),
    ("nr_pt_frames", "<u8", 96),
    ("mfn_list", "<u8", 104),
)

Ram = NDArray[np.uint8]  # (nr_pages, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class TickerOptions:
    """What `extra` tells a test guest to do; rates and sizes in bytes."""

    tick_s: float = 1.0
    dirty_rate: float = 0.0
    wss: int | None = None  # all of the heap
    fill: bool = False

    @classmethod
    def parse(cls, extra: str) -> TickerOptions:
        """Return the options of a kernel command line; words of other programs are ignored.

        `tick=SECONDS dirty=200MB/s wss=256MB fill=random`; MB is 10^6 bytes, MiB 2^20.

        Raises:
            ValueError: a word that is meant has an impossible value.
        """
        words = dict(word.split("=", 1) for word in extra.split() if "=" in word)
        tick_s = float(words.get("tick", "1"))
        if not 0.001 <= tick_s <= 86400:
            raise ValueError(f"tick must be 0.001 to 86400 seconds, not {tick_s:g}")
        if words.get("fill", "none") not in ("none", "random"):
            raise ValueError(f"fill must be none or random, not {words['fill']}")
        return cls(
            tick_s=tick_s,
            dirty_rate=_size(words.get("dirty", "0").removesuffix("/s")),
            wss=int(_size(words["wss"])) if "wss" in words else None,
            fill=words.get("fill") == "random",
        )


def _size(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:([kKMGT])(i?)B?|B)?", text)
    if not match:
        raise ValueError(f"expected a size such as 200MB, not {text}")
    number, prefix, binary = match.groups()
    exponent = " KMGT".index(prefix.upper()) if prefix else 0
    return float(number) * float((1024 if binary else 1000) ** exponent)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in a guest of `nr_pages` pages."""

    nr_pages: int

    def __post_init__(self) -> None:
        if not MIN_PAGES <= self.nr_pages <= 1 << 28:
            raise ValueError(f"a test guest has {MIN_PAGES} to 2^28 pages, not {self.nr_pages}")

    @property
    def p2m_pages(self) -> int:
        return -(-self.nr_pages // ENTRIES)

    @property
    def log_first(self) -> int:
        return P2M_PFN + self.p2m_pages

    @property
    def log_pages(self) -> int:
        return min(MAX_LOG_PAGES, self.nr_pages // 16)

    @property
    def sequence_first(self) -> int:
        return self.log_first + self.log_pages

    @property
    def heap_first(self) -> int:
        return self.sequence_first + -(-self.nr_pages * 4 // PAGE_SIZE)

    @property
    def heap_pages(self) -> int:
        return self.nr_pages - self.heap_first

    def types(self) -> Types:
        """Return the type of every page, uint8[nr_pages]; they never change."""
        types = np.zeros(self.nr_pages, np.uint8)
        types[L4_PFN] = PageType.L4TAB_PIN
        types[[L3_PFN, L2_PFN, L1_PFN]] = [PageType.L3TAB, PageType.L2TAB, PageType.L1TAB]
        return types


def read_options(ram: Ram) -> TickerOptions:
    """Return what the guest in `ram` was told to do."""
    state = view_state(ram)
    return TickerOptions(
        tick_s=float(state["tick_s"]),
        dirty_rate=float(state["dirty_rate"]) * PAGE_SIZE,
        wss=int(state["wss_pages"]) << PAGE_SHIFT,
        fill=bool(state["fill"]),
    )


def view_ram(buffer: memoryview) -> Ram:
    """Return guest memory as uint8[nr_pages, 4096], sharing `buffer`."""
    return np.frombuffer(buffer, np.uint8).reshape(-1, PAGE_SIZE)


def view_state(ram: Ram) -> NDArray[np.void]:
    """Return the state page as a 0-d array of STATE, sharing the memory."""
    return ram[STATE_PFN, : STATE.itemsize].view(STATE)[0:1].reshape(())


def read_layout(ram: Ram) -> Layout:
    """Return the layout of memory that holds a test guest.

    Raises:
        ValueError: it holds something else, or does not fit.
    """
    state = view_state(ram)
    if bytes(state["magic"]) != MAGIC or int(state["version"]) != VERSION:
        raise ValueError("no test guest's memory: its state page is missing")
    if int(state["nr_pages"]) != len(ram):
        raise ValueError(f"a test guest of {int(state['nr_pages'])} pages in {len(ram)}")
    return Layout(len(ram))


def build(ram: Ram, *, vcpus: int, options: TickerOptions) -> None:
    """Lay a new guest out in `ram`, which is all zero."""
    layout = Layout(len(ram))
    state = view_state(ram)
    state["magic"], state["version"] = MAGIC, VERSION
    state["vcpus"], state["nr_pages"] = vcpus, layout.nr_pages
    state["tick_s"] = options.tick_s
    state["dirty_rate"] = options.dirty_rate / PAGE_SIZE
    wss = layout.heap_pages if options.wss is None else options.wss >> PAGE_SHIFT
    state["wss_pages"] = max(1, min(wss, layout.heap_pages))
    state["fill"] = options.fill
    for pfn, page in fixed_pages(layout).items():
        ram[pfn] = page
    view_p2m(ram)[:] = np.arange(layout.nr_pages, dtype=np.uint64)


def view_p2m(ram: Ram) -> NDArray[np.uint64]:
    """Return the guest's pfn-to-mfn table, uint64[nr_pages], sharing the memory."""
    layout = Layout(len(ram))
    pages = ram[P2M_PFN : P2M_PFN + layout.p2m_pages]
    return pages.reshape(-1).view(np.uint64)[: layout.nr_pages]


def view_sequences(ram: Ram) -> NDArray[np.uint32]:
    """Return the sequence number of every heap page, uint32[heap_pages], sharing the memory."""
    layout = Layout(len(ram))
    pages = ram[layout.sequence_first : layout.heap_first]
    return pages.reshape(-1).view(np.uint32)[: layout.heap_pages]


def fixed_pages(layout: Layout) -> dict[int, Ram]:
    """Return the pages that never change, by pfn: start_info, GDT and page tables."""
    pages = {START_INFO_PFN: _start_info(layout), GDT_PFN: _gdt()}
    for pfn, target in ((L4_PFN, L3_PFN), (L3_PFN, L2_PFN), (L2_PFN, L1_PFN)):
        pages[pfn] = _table(np.array([target], np.uint64), TABLE_FLAGS)
    mapped = np.arange(min(ENTRIES, layout.nr_pages), dtype=np.uint64)
    pages[L1_PFN] = _table(mapped, TABLE_FLAGS | DIRTY)
    # Xen lets no guest write its page tables or its GDT through a mapping.
    entries = pages[L1_PFN].view(np.uint64)
    entries[GDT_PFN : L1_PFN + 1] &= np.uint64(~(WRITABLE | DIRTY) & (2**64 - 1))
    return pages


def _table(pfns: NDArray[np.uint64], flags: int) -> Ram:
    entries = np.zeros(ENTRIES, np.uint64)
    entries[: len(pfns)] = (pfns << np.uint64(PAGE_SHIFT)) | np.uint64(flags)
    return entries.view(np.uint8)


def _start_info(layout: Layout) -> Ram:
    page = np.zeros(PAGE_SIZE, np.uint8)
    info = page[: START_INFO.itemsize].view(START_INFO)
    info["magic"] = b"xen-3.0-x86_64"
    info["nr_pages"] = layout.nr_pages
    info["store_mfn"], info["store_evtchn"] = STORE_PFN, 1
    info["console_mfn"], info["console_evtchn"] = CONSOLE_PFN, 2
    info["pt_base"], info["nr_pt_frames"] = L4_PFN << PAGE_SHIFT, 4
    info["mfn_list"] = P2M_PFN << PAGE_SHIFT
    return page


def _gdt() -> Ram:
    entries = np.zeros(ENTRIES, np.uint64)
    entries[1] = 0x00AF9B000000FFFF  # flat 64-bit code
    entries[2] = 0x00CF93000000FFFF  # flat data
    return entries.view(np.uint8)


def read_log(ram: Ram, offset: int = 0) -> tuple[bytes, int]:
    """Return the log from byte `offset` of all ever logged, and the offset of its end.

    Begins with a whole line where the ring has lost what was asked for. The guest may write
    meanwhile: it stores a line, at most MAX_LINE bytes, and then the end.
    """
    layout = Layout(len(ram))
    ring = ram[layout.log_first : layout.sequence_first].reshape(-1)
    state = view_state(ram)
    end = int(state["log_end"])
    start = max(min(offset, end), end + PAGE_SIZE - len(ring))
    text = np.take(ring, np.arange(start, end, dtype=np.int64), mode="wrap").tobytes()
    overwritten = max(0, int(state["log_end"]) + MAX_LINE - len(ring) - start)
    text = text[overwritten:]
    if start + overwritten > max(offset, 0):
        text = text[text.find(b"\n") + 1 :]
    return text, end
