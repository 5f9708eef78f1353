"""Rows about save files and formats, in this process and on tmpfs."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.bench import sender
from tests.bench.harness import MIB, Bench, Row, at_least, at_most, available_mib, timed
from tests.bytes_source import BytesSource
from xendpy.guest.domain import Domain, GuestType
from xendpy.guest.pages import MAX_BATCH, PAGE_SIZE, PageBatch
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.receive import FileSource, NoGuest, drive
from xendpy.migration.saved_file import Cancel, FileSink, restore_file, save_file
from xendpy.paths import Paths
from xendpy.stream.convert import to_modern
from xendpy.stream.libxl import LibxlEncoder
from xendpy.stream.records import Record
from xendpy.stream.xend import decode_body, read_envelope

TIME_S = 180.0  # for the rows about files
COPIES = 3  # of a guest that exist at once, at most: the file, the store's, what is made


def run(bench: Bench) -> None:
    """Measure all rows."""
    names = ("restore a guest", "save a guest", "convert v1 to libxl v2")
    if any(map(bench.wants, names)):
        room = available_mib() // (COPIES + 1)
        largest = min(bench.mib(4096), room // 4 * 4)
        sizes = [largest // parts // 4 * 4 for parts in (8, 4, 2, 1)]
        with _largest_affordable(bench, sizes) as (guest, mib):
            bars = (at_least(0.8), at_least(0.8), at_most(1.15))
            works = (guest.restore, guest.save, guest.convert)
            rows = [
                Row(work=name, against="cp", bar=bar, note=f"of {mib} MiB")
                for name, bar in zip(names, bars, strict=True)
            ]
            bench.compare_all(list(zip(rows, works, strict=True)), guest.cp)
    _decode_row(bench)


@contextmanager
def _largest_affordable(bench: Bench, sizes_mib: Sequence[int]) -> Iterator[tuple[GuestFile, int]]:
    """Give a guest of the largest size, of which TIME_S suffices for all rounds, and its MiB.

    A virtual machine may have to ask its host for every page that it touches anew, and then a
    copy of 4 GiB takes a minute and more, which says nothing about what is measured here. Pages
    that were freed a moment ago are there already: only whole rounds tell, each size's in turn.
    """
    for mib, larger in pairwise([*sizes_mib, math.inf]):
        with guest_file(bench.memory_directory, int(mib)) as guest:
            round_s = guest.restore() + guest.save() + guest.convert() + guest.cp()
            if larger / mib * round_s * (bench.pairs + 1) > TIME_S:
                yield guest, int(mib)
                return


def write_image(path: Path, mib: int) -> None:
    """Write a legacy save file of `mib` MiB of random data."""
    block = os.urandom(MAX_BATCH * PAGE_SIZE)
    with path.open("wb") as file:
        file.write(sender.opening(mib))
        for header in sender.batches(mib, scattered=False):
            file.write(header)
            file.write(block)
        file.write(sender.closing())


@dataclass(slots=True)
class GuestFile:
    """A legacy save file, and what is done with it; each returns its seconds, and clears up."""

    source: Path
    made: Path
    hypervisor: StoreHypervisor
    restored: Domain | None = None

    def restore(self) -> float:
        if self.restored is not None:
            self.hypervisor.destroy(self.restored)
        start_s = time.perf_counter()
        self.restored = restore_file(self.hypervisor, self.source, cancel=Cancel())
        return time.perf_counter() - start_s

    def save(self) -> float:
        if self.restored is None:
            self.restore()
        guest, cancel = self.restored, Cancel()
        assert guest is not None
        return self._making(
            lambda: save_file(self.hypervisor, guest, self.made, checkpoint=True, cancel=cancel)
        )

    def convert(self) -> float:
        return self._making(lambda: to_libxl(self.source, self.made))

    def cp(self) -> float:
        return self._making(lambda: subprocess.run(["cp", self.source, self.made], check=True))

    def _making(self, work: Callable[[], object]) -> float:
        try:
            return timed(work)
        finally:
            self.made.unlink()


@contextmanager
def guest_file(directory: Path, mib: int) -> Iterator[GuestFile]:
    """Write such a file into a directory, with a store for what comes out of it."""
    source, root = directory / "guest.save", directory / "store"
    hypervisor = StoreHypervisor(Paths(root))
    try:
        write_image(source, mib)
        yield GuestFile(source, directory / "made", hypervisor)
    finally:
        hypervisor.close()
        shutil.rmtree(root)
        source.unlink()


def to_libxl(source: Path, target: Path) -> None:
    """Convert a legacy save file, without its envelope."""
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        sink = FileSink(writer.fileno())

        def write(pieces: Iterable[bytes | memoryview]) -> None:
            sink.write(list(pieces))

        drive(read_envelope(), FileSource(reader.fileno()), NoGuest())
        conversion = to_modern(LibxlEncoder(GuestType.PV, is_converted=True), write)
        drive(decode_body(GuestType.PV), FileSource(reader.fileno()), conversion)


class Frames:
    """A sink: one block of memory for each batch's pages in turn, as a guest's frames are."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def populate(self, batch: PageBatch) -> list[memoryview]:
        first = int(batch.pfns[0]) * PAGE_SIZE
        return [self._memory[first : first + len(batch) * PAGE_SIZE]]

    def apply(self, record: Record) -> None:
        pass


def _decode_row(bench: Bench) -> None:
    mib = bench.mib(512)
    work = f"decode {mib} MiB from memory"
    if not bench.wants(work):
        return
    block = os.urandom(MAX_BATCH * PAGE_SIZE)
    parts = [sender.opening(mib)]
    for header in sender.batches(mib, scattered=False):
        parts += [header, block]
    image = memoryview(b"".join([*parts, sender.closing()]))
    guest = np.ones(mib * MIB, np.uint8)
    memory = memoryview(guest)

    def decode() -> None:
        source = BytesSource(image)
        drive(read_envelope(), source, NoGuest())
        drive(decode_body(GuestType.PV), source, Frames(memory))

    def copy() -> None:
        memory[:] = image[: len(memory)]

    bench.compare(work, "memory copy", at_least(0.7), lambda: timed(decode), lambda: timed(copy))
