"""Keep the part of a guest's memory that is not on disk small while it comes in.

What lies together is pushed out in windows as it comes: the disk works while the network does.
Scattered pages wait longer, because each of them is an extent and a write of its own unless its
neighbours come before it goes.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import deque

from xendpy.guest.pages import PAGE_SHIFT

WINDOW_BYTES = 32 << 20
SCATTERED_BYTES = 96 << 20
MAX_PENDING_BYTES = 160 << 20  # and the window being filled: at most 256 MiB are not on disk
DENSE = 0.5  # of a window's span, written: below, it is scattered

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4  # linux/fs.h
# The kernel, a filter of system calls, or the kind of file does without: the final fsync does all.
_CANNOT = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ESPIPE})
_libc = ctypes.CDLL(None, use_errno=True)
_sync_file_range = getattr(_libc, "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class WriteBack:
    """Follows what is written to the open file `fd`, and starts and awaits its write-back."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._windows: deque[tuple[int, int, int]] = deque()  # low, high, bytes written
        self._pending = 0
        self._low = self._high = self._filled = 0

    def note(self, first_pfn: int, end_pfn: int, nr_pages: int) -> None:
        """Count `nr_pages` written between two pfns; waits when too much is not on disk.

        Raises:
            OSError: what was written earlier did not come to disk. Nothing says so again: to the
                kernel an error that was told once, of an open file, is known (errseq_t), and the
                final fsync succeeds.
        """
        if not self._filled:
            self._low, self._high = first_pfn, end_pfn
        self._low, self._high = min(self._low, first_pfn), max(self._high, end_pfn)
        self._filled += nr_pages << PAGE_SHIFT
        span = (self._high - self._low) << PAGE_SHIFT
        is_dense = self._filled >= DENSE * span
        if self._filled < (WINDOW_BYTES if is_dense else SCATTERED_BYTES):
            return
        self._flush(self._low, self._high, _WRITE)
        self._windows.append((self._low, self._high, self._filled))
        self._pending += self._filled
        self._filled = 0
        while self._pending > MAX_PENDING_BYTES:
            low, high, nr_bytes = self._windows.popleft()
            self._pending -= nr_bytes
            self._flush(low, high, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)
            # Room for what comes next: a host with little memory keeps it for others, and pages
            # that were in use a moment ago are cheaper to have again than new ones.
            os.posix_fadvise(
                self._fd, low << PAGE_SHIFT, (high - low) << PAGE_SHIFT, os.POSIX_FADV_DONTNEED
            )

    def _flush(self, low: int, high: int, flags: int) -> None:
        if _sync_file_range is None:
            return
        length = (high - low) << PAGE_SHIFT
        if _sync_file_range(self._fd, low << PAGE_SHIFT, length, flags) < 0:
            number = ctypes.get_errno()
            if number not in _CANNOT:
                raise OSError(number, os.strerror(number))
