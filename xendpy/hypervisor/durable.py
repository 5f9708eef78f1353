"""Every durable write of the daemon, in one place.

A write is durable when the call returns: file contents are synced before a rename makes them
visible, and the directory after it. The steps are reported to a recorder, if there is one, so
that tests can replay any prefix of them as a power cut would leave it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeAlias


class OperationKind(Enum):
    """One step that a power cut may come before or after."""

    MKDIR = "mkdir"
    CREATE = "create"  # an empty file
    APPEND = "append"  # `data`, at the end of the file
    SYNC = "sync"  # the file as it is now is on disk
    RENAME = "rename"  # to `target`, replacing a file
    UNLINK = "unlink"
    RMDIR = "rmdir"
    SYNC_DIR = "sync-dir"  # the directory's entries are on disk


@dataclass(frozen=True, slots=True)
class Operation:
    """A step that was taken."""

    kind: OperationKind
    path: Path
    target: Path | None = None
    data: bytes = b""


Recorder: TypeAlias = Callable[[Operation], None]


class Durable:
    """Writes files and directories so that they outlive a power cut. Any thread.

    Raises OSError as the system does; the caller knows what it means.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder

    def write_file(self, path: Path, data: bytes) -> None:
        """Put `data` at `path`, as a whole or not at all."""
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        fd = self.create(temporary)
        try:
            self.append(fd, temporary, data)
            self.sync(fd, temporary)
        finally:
            os.close(fd)
        self.rename(temporary, path)

    def create(self, path: Path) -> int:
        """Create an empty file and return it open for reading and appending; not synced yet."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._record(OperationKind.CREATE, path)
        return fd

    def append(self, fd: int, path: Path, data: bytes) -> None:
        """Write `data` at the end of the open file `fd`, called `path`; not synced yet."""
        rest = memoryview(data)
        os.lseek(fd, 0, os.SEEK_END)
        while rest:
            rest = rest[os.write(fd, rest) :]
        self._record(OperationKind.APPEND, path, data=data)

    def sync(self, fd: int, path: Path) -> None:
        """Bring the open file `fd`, called `path`, to disk."""
        os.fsync(fd)
        self._record(OperationKind.SYNC, path)

    def sync_dir(self, path: Path) -> None:
        """Bring the entries of a directory to disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self._record(OperationKind.SYNC_DIR, path)

    def mkdir(self, path: Path) -> None:
        """Create a directory, and those above it, unless they exist."""
        if path.is_dir():
            return
        self.mkdir(path.parent)
        path.mkdir(mode=0o755, exist_ok=True)
        self._record(OperationKind.MKDIR, path)
        self.sync_dir(path.parent)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file or directory another place, in one step."""
        os.rename(path, target)
        self._record(OperationKind.RENAME, path, target=target)
        self.sync_dir(target.parent)
        if path.parent != target.parent:
            self.sync_dir(path.parent)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it exists."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        self._record(OperationKind.UNLINK, path)
        self.sync_dir(path.parent)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and all below it, if it exists; links are not followed."""
        try:
            entries = list(os.scandir(path))
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                self.remove_tree(Path(entry.path))
            else:
                os.unlink(entry.path)
                self._record(OperationKind.UNLINK, Path(entry.path))
        os.rmdir(path)
        self._record(OperationKind.RMDIR, path)

    def _record(
        self, kind: OperationKind, path: Path, *, target: Path | None = None, data: bytes = b""
    ) -> None:
        if self._recorder is not None:
            self._recorder(Operation(kind, path, target, data))
