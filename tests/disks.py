"""A disk that is soon full, for whoever may mount one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_libc = ctypes.CDLL(None, use_errno=True)


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
