"""Rows about save files and formats, in this process and on tmpfs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tests.bench import sender
from tests.bench.harness import MIB, Bench, at_least, at_most, available_mib, timed
from xendpy.guest.domain import Domain, GuestType
from xendpy.guest.pages import MAX_BATCH, PAGE_SIZE, PageBatch
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.receive import BytesSource, FileSource, NoGuest, drive
from xendpy.migration.saved_file import Cancel, FileSink, restore_file, save_file
from xendpy.paths import Paths
from xendpy.stream.convert import to_modern
from xendpy.stream.libxl import LibxlEncoder
from xendpy.stream.records import Record
from xendpy.stream.xend import decode_body, read_envelope

COPIES = 4  # of a guest that exist at once, at most


def run(bench: Bench) -> None:
    """Measure all rows."""
    mib = min(bench.mib(4096), available_mib() // (COPIES + 1) // 4 * 4)
    names = ("save", "restore", "convert")
    if any(bench.wants(f"{name} {mib} MiB") for name in names):
        source = bench.memory_directory / "guest.save"
        write_image(source, mib)
        _save_rows(bench, source, mib)
        _convert_row(bench, source, mib)
        source.unlink()
    _decode_row(bench)


def write_image(path: Path, mib: int) -> None:
    """Write a legacy save file of `mib` MiB of random data."""
    block = os.urandom(MAX_BATCH * PAGE_SIZE)
    with path.open("wb") as file:
        file.write(sender.opening(mib))
        for header in sender.batches(mib, scattered=False):
            file.write(header)
            file.write(block)
        file.write(sender.closing())


def copied(source: Path, target: Path) -> float:
    """Copy a file with cp; return the seconds."""
    try:
        return timed(lambda: subprocess.run(["cp", source, target], check=True))
    finally:
        target.unlink()


def _save_rows(bench: Bench, source: Path, mib: int) -> None:
    root = bench.memory_directory / "store"
    saved, copy = bench.memory_directory / "again.save", bench.memory_directory / "copy"
    hypervisor = StoreHypervisor(Paths(root))
    domains: list[Domain] = []

    def restore() -> float:
        for domain in domains:
            hypervisor.destroy(domain)
        domains.clear()
        cancel = Cancel()
        return timed(lambda: domains.append(restore_file(hypervisor, source, cancel=cancel)))

    def save() -> float:
        cancel = Cancel()
        try:
            return timed(
                lambda: save_file(hypervisor, domains[0], saved, checkpoint=True, cancel=cancel)
            )
        finally:
            saved.unlink()

    def cp() -> float:
        return copied(source, copy)

    try:
        bench.compare(f"restore {mib} MiB", "cp", at_least(0.8), restore, cp)
        if not domains:
            restore()
        bench.compare(f"save {mib} MiB", "cp", at_least(0.8), save, cp)
    finally:
        hypervisor.close()
        shutil.rmtree(root)


def _convert_row(bench: Bench, source: Path, mib: int) -> None:
    target, copy = bench.memory_directory / "guest.libxl", bench.memory_directory / "copy"

    def convert() -> float:
        try:
            return timed(lambda: to_libxl(source, target))
        finally:
            target.unlink()

    bench.compare(
        f"convert {mib} MiB, v1 to libxl v2",
        "cp",
        at_most(1.15),
        convert,
        lambda: copied(source, copy),
    )


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
