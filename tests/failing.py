"""A disk that fails: the operations of `Durable` as they end on one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from xendpy.hypervisor.durable import Durable

# Which operations end so, and whether all do from the first one on.
FAILURES = {
    errno.EIO: (("append", "sync", "sync_dir"), False),
    errno.ENOSPC: (("create", "append", "sync"), True),
    errno.EROFS: (("create", "append", "rename", "unlink"), True),
}


class FailingDurable(Durable):
    """Counts its operations; `arm` has those fail that come at the number given, or later."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.failed = 0
        self._number = 0
        self._at = 0

    def arm(self, number: int, at: int) -> None:
        """Fail with the error `number` at the `at`th operation from here."""
        self._number, self._at = number, self.operations + at
        self.failed = 0

    def lift(self) -> None:
        """Be a good disk again."""
        self._number = 0

    def _pass(self, name: str) -> None:
        self.operations += 1
        if not self._number or self.operations < self._at:
            return
        names, lasting = FAILURES[self._number]
        if name in names and (lasting or not self.failed):
            self.failed += 1
            raise OSError(self._number, os.strerror(self._number))

    def create(self, path: Path) -> int:
        self._pass("create")
        return super().create(path)

    def append(self, fd: int, path: Path, data: bytes) -> None:
        self._pass("append")
        super().append(fd, path, data)

    def sync(self, fd: int, path: Path) -> None:
        self._pass("sync")
        super().sync(fd, path)

    def sync_dir(self, path: Path) -> None:
        self._pass("sync_dir")
        super().sync_dir(path)

    def rename(self, path: Path, target: Path) -> None:
        self._pass("rename")
        super().rename(path, target)

    def unlink(self, path: Path) -> None:
        self._pass("unlink")
        super().unlink(path)
