"""Copy a sparse file inside the kernel, holes left out."""

from __future__ import annotations

import os

from xendpy.errors import HypervisorError


def copy_sparse(source: int, target: int, size: int) -> None:
    """Copy the first `size` bytes of one open file over those of another; holes are passed by.

    Raises:
        HypervisorError: the source ends early.
    """
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(source, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = min(os.lseek(source, offset, os.SEEK_HOLE), size)
        os.lseek(target, offset, os.SEEK_SET)
        while offset < end:
            count = os.sendfile(target, source, offset, end - offset)
            if not count:
                raise HypervisorError("the image ends early", operation="copy")
            offset += count
