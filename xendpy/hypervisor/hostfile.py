"""Files of this host that a guest's configuration names: what they are, before one is opened.

A configuration may be a stranger's, and opening acts: a pipe blocks, a watchdog is armed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STORAGE = "a file or a block device"
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def kind_of(path: str) -> str:
    """Return what is there, links followed, in words; empty if nothing is that can be seen."""
    try:
        return _words(os.stat(path).st_mode)
    except (OSError, ValueError):
        return ""


def _words(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "nothing known")


def is_anybodys(path: str, top: str) -> bool:
    """Say whether anybody may put something else under that name, in a directory below `top`."""
    if ".." in path.split("/"):  # behind a link: who knows whose directory that is
        return True
    place = os.path.dirname(os.path.normpath(path))
    while place.startswith(top + "/"):
        with suppress(OSError):
            if os.stat(place).st_mode & stat.S_IWOTH:
                return True
        place = os.path.dirname(place)
    return False


@contextmanager
def opened(path: str, *, writable: bool = False) -> Iterator[int]:
    """Give a descriptor of a file or a block device, for as long as the block lasts.

    What it is is asked of a descriptor that opens nothing, and the very same is opened then:
    nobody can put something else under the name in between.

    Raises:
        OSError: it cannot be opened, or is neither.
        ValueError: that can be no path.
    """
    seen = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = os.fstat(seen).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            reason = f"it is {_words(mode)}, {STORAGE} was expected"
            raise OSError(errno.EINVAL, reason, path)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        if stat.S_ISBLK(mode):
            # Not for files: one that an NFS server here has lent to a client has to be waited for.
            flags |= os.O_NONBLOCK
        fd = os.open(f"/proc/self/fd/{seen}", flags)
    finally:
        os.close(seen)
    try:
        yield fd
    finally:
        os.close(fd)
