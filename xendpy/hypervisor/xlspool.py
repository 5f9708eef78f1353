"""A save file of xend's format, written beside the build of a guest from an old sender.

The sender may have destroyed its guest: should xl fail to build it, this file is what is left. A
frame that is sent again in a later round takes the place of its older copy, so the file has one
guest's size whatever the number of rounds, and holds a valid image at any moment. Zero pages are
holes.

    NAME.arriving   being written; after a crash of the daemon it becomes NAME.partial
    NAME.save       whole: `xm restore FILE` builds the guest
    NAME.partial    broken off after every page had come at least once
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xendpy.errors import OutOfMemory
from xendpy.guest.domain import DomainConfig
from xendpy.guest.pages import HAS_DATA, PAGE_SIZE, PageBatch, PageType, Pfns
from xendpy.stream.legacy_dialect import DIALECTS
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.records import (
    EmulatorContext,
    EmulatorSignature,
    End,
    Pages,
    Record,
    StreamStart,
    Verify,
)
from xendpy.stream.xend import encode_envelope

ARRIVING, SAVED, PARTIAL = ".arriving", ".save", ".partial"
MAX_PARTIALS = 8
SLACK_BYTES = 160 << 20  # device model, vcpus, batch headers
WRITE_BACK_BYTES = 256 << 20
ENTRY = np.dtype("<u8")
TYPE_SHIFT = np.uint64(28)


class Spool:
    """One guest's file; `close` leaves it where the last of save, partial and discard put it."""

    def __init__(self, directory: Path, config: DomainConfig, *, reserved_bytes: int = 0) -> None:
        """Create the file, if there is room besides what others have reserved.

        Raises:
            OutOfMemory: there is not.
            OSError: the directory cannot be written.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.wanted_bytes = (config.maxmem_mib << 20) + SLACK_BYTES
        room = os.statvfs(directory)
        free = room.f_bavail * room.f_frsize - reserved_bytes
        if self.wanted_bytes > free:
            raise OutOfMemory(
                f"{config.name} needs {self.wanted_bytes >> 20} MiB in {directory} to be kept"
                f" safe while it is built, {max(0, free) >> 20} MiB are free",
                wanted_bytes=self.wanted_bytes,
                free_bytes=max(0, free),
            )
        self.path, self._fd = _create(directory, config.name)
        self._encoder = LegacyEncoder(DIALECTS["4.5"], config.guest_type)
        self._end = 0
        self._unsynced = 0
        self._on_disk_bytes = 0  # what the file system has counted as used
        self._verifying = False
        self.whole = False
        self._forget(0)
        self._append([encode_envelope(config)])

    @property
    def left_bytes(self) -> int:
        """Return the room that the file may still take, of what is free. Any thread.

        Not every file system counts what it has not written yet as used: only what has reached
        the disk is no longer wanted.
        """
        whole = self.path.suffix != ARRIVING
        return 0 if whole else max(0, self.wanted_bytes - self._on_disk_bytes)

    def apply(self, record: Record) -> None:
        """Write one record of a legacy stream; errors are OSError."""
        match record:
            case Verify():
                self._verifying = True
            case Pages():
                if not self._verifying:  # what is sent for comparison is there already
                    self._pages(record)
            case _:
                if isinstance(record, StreamStart):
                    self._forget(record.p2m_size)
                if isinstance(record, EmulatorContext):
                    record = replace(record, signature=EmulatorSignature.XEND)
                self._append(list(self._encoder.encode(record)))
                self.whole = self.whole or isinstance(record, End)

    def _forget(self, p2m_size: int) -> None:
        # By pfn: where its entry and its page stand in the file, 0 = nowhere; and its type there.
        self._entry_at: NDArray[np.uint64] = np.zeros(p2m_size, np.uint64)
        self._page_at: NDArray[np.uint64] = np.zeros(p2m_size, np.uint64)
        self._types: NDArray[np.uint8] = np.zeros(p2m_size, np.uint8)

    def _pages(self, record: Pages) -> None:
        pfns, types = record.batch.pfns, record.batch.types
        with_data = HAS_DATA[types]
        again = with_data & (self._page_at[pfns] != 0)
        if not again.any():
            self._append_pages(record)
            return
        data = np.concatenate([np.frombuffer(view, np.uint8) for view in record.views])
        pages = data.reshape(-1, PAGE_SIZE)
        old = again[with_data]
        self._replace(pfns[again], types[again], pages[old])
        rest = PageBatch(pfns[~again], types[~again])
        if len(rest):
            left = np.ascontiguousarray(pages[~old])
            self._append_pages(Pages(rest, [left.reshape(-1).data] if left.size else []))

    def _append_pages(self, record: Pages) -> None:
        """Append a batch, remember where its parts are, and leave holes for zero pages."""
        pieces = list(self._encoder.encode(record))
        if not pieces:
            return
        kept = record.batch.types != PageType.XTAB
        pfns, types = record.batch.pfns[kept], record.batch.types[kept]
        if len(pfns) > 1024:  # the encoder has split it: its places are not remembered
            self._append(pieces)
            return
        head = len(pieces[0])
        start = self._end
        self._append(pieces)
        entries = start + head - ENTRY.itemsize * len(pfns)
        indices = np.arange(len(pfns), dtype=np.uint64)
        with_data = HAS_DATA[types]
        self._entry_at[pfns] = np.uint64(entries) + indices * np.uint64(ENTRY.itemsize)
        places = np.arange(int(with_data.sum()), dtype=np.uint64) * np.uint64(PAGE_SIZE)
        self._page_at[pfns[with_data]] = np.uint64(start + head) + places
        self._types[pfns] = types

    def _replace(self, pfns: Pfns, types: NDArray[np.uint8], pages: NDArray[np.uint8]) -> None:
        """Overwrite frames: each run that lies together in the file at once."""
        others = self._types[pfns] != types  # a frame seldom becomes a page table, or ceases to be
        entries = (pfns | (types.astype(np.uint64) << TYPE_SHIFT)).astype(ENTRY)[others]
        self._types[pfns] = types
        for entry, place in zip(entries, self._entry_at[pfns[others]].tolist(), strict=True):
            _pwrite(self._fd, memoryview(entry.tobytes()), place)
        places = self._page_at[pfns].astype(np.int64)
        edges = np.flatnonzero(np.diff(places) != PAGE_SIZE) + 1
        for first, last in pairwise([0, *edges.tolist(), len(places)]):
            _pwrite(self._fd, pages[first:last].reshape(-1).data, int(places[first]))
        self._written(pages.nbytes)

    def _append(self, pieces: Sequence[bytes | memoryview]) -> None:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            if view.nbytes % PAGE_SIZE == 0:
                self._append_sparse(view)
            else:
                _pwrite(self._fd, view, self._end)
            self._end += view.nbytes
            self._written(view.nbytes)

    def _append_sparse(self, view: memoryview) -> None:
        """Write the runs of pages that are not all zeros; `_settle` gives the file its length."""
        filled = np.frombuffer(view, np.uint64).reshape(-1, PAGE_SIZE // 8).any(axis=1)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], filled, [False])).view(np.int8)))
        for first, last in edges.reshape(-1, 2).tolist():
            _pwrite(
                self._fd, view[first * PAGE_SIZE : last * PAGE_SIZE], self._end + first * PAGE_SIZE
            )

    def _written(self, count: int) -> None:
        self._unsynced += count
        if self._unsynced >= WRITE_BACK_BYTES:
            os.fdatasync(self._fd)
            self._unsynced = 0
            self._on_disk_bytes = os.fstat(self._fd).st_blocks * 512

    def seal(self) -> Path:
        """Make the whole file durable under its final name, and return that."""
        return self._settle(SAVED)

    def keep_partial(self) -> Path:
        """Keep what has come of a stream that broke off; of such files the newest few stay."""
        path = self._settle(PARTIAL)
        partials = sorted(path.parent.glob(f"*{PARTIAL}"), key=lambda item: item.stat().st_mtime)
        for old in partials[:-MAX_PARTIALS]:
            old.unlink(missing_ok=True)
        return path

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file. May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _settle(self, suffix: str) -> Path:
        os.ftruncate(self._fd, self._end)
        os.fsync(self._fd)
        target = _free(self.path.with_name(self.path.name.removesuffix(ARRIVING)), suffix)
        os.rename(self.path, target)
        _sync_directory(target.parent)
        self.path = target
        return target


def recover(directory: Path) -> list[Path]:
    """Rename what a daemon that ended early was receiving; return the new names."""
    found = []
    for path in sorted(directory.glob(f"*{ARRIVING}")):
        target = _free(path.with_name(path.name.removesuffix(ARRIVING)), PARTIAL)
        os.rename(path, target)
        found.append(target)
    return found


def _create(directory: Path, name: str) -> tuple[Path, int]:
    # The name is checked by DomainConfig: no slash is in it.
    number = 0
    while True:
        number += 1
        path = directory / f"{name}{f'.{number}' if number > 1 else ''}{ARRIVING}"
        try:
            return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue


def _free(base: Path, suffix: str) -> Path:
    number, path = 1, base.with_name(base.name + suffix)
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}.{number}{suffix}")
    return path


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
