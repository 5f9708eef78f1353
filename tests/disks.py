"""A disk that is soon full, for whoever may mount one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_libc = ctypes.CDLL(None, use_errno=True)
_REMOUNT_READ_ONLY = 0x20 | 0x1  # linux/mount.h MS_REMOUNT, MS_RDONLY


@contextmanager
def small_disk(where: Path, size_mib: int) -> Iterator[Path]:
    """Mount a tmpfs of `size_mib` at `where`; skips the test where that is not allowed."""
    where.mkdir()
    options = f"size={size_mib}m".encode()
    if _libc.mount(b"none", os.fsencode(where), b"tmpfs", 0, options) != 0:
        pytest.skip(f"cannot mount a small tmpfs: {os.strerror(ctypes.get_errno())}")
    try:
        yield where
    finally:
        _libc.umount2(os.fsencode(where), 2)  # MNT_DETACH


def make_read_only(disk: Path) -> None:
    """Let nothing more be written to a disk that `small_disk` gave."""
    if _libc.mount(b"none", os.fsencode(disk), b"tmpfs", _REMOUNT_READ_ONLY, None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(disk))


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave no room on a disk, within the block."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    try:
        yield
    finally:
        ballast.unlink()
