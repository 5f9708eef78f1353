"""A disk that forgets: what a power cut leaves of the operations of `Durable`.

`Recorder` is given to a Durable. `leave(operations, root, target, kept)` builds below `target`
what was below `root` after these operations. What a sync had brought to disk is there; of the
rest each operation is there or not as `kept` says, whatever came before or behind it: ALL (the
process was killed), NONE (the power was cut), or at random (the disk wrote in an order of its
own). A rename is one step on disk too, as in every journalling file system: syncing either
directory brings both ends of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from xendpy.hypervisor.durable import Operation, OperationKind

Kept: TypeAlias = Callable[[], bool]


def ALL() -> bool:
    return True


def NONE() -> bool:
    return False


@dataclass(eq=False)
class File:
    now: bytes = b""
    synced: bytes = b""


@dataclass(eq=False)
class Directory:
    now: dict[str, File | Directory] = field(default_factory=dict)
    synced: dict[str, File | Directory] = field(default_factory=dict)


# What one operation did to directories' entries; None = the entry went.
Change: TypeAlias = list[tuple[Directory, str, File | Directory | None]]


class Recorder:
    """Keeps every operation, and what a synced file held at that moment."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def __call__(self, operation: Operation) -> None:
        if operation.kind is OperationKind.SYNC:
            data = operation.path.read_bytes()
            operation = Operation(operation.kind, operation.path, data=data)
        self.operations.append(operation)


def leave(operations: list[Operation], root: Path, target: Path, kept: Kept) -> None:
    """Build below `target` what these operations leave of an empty `root`."""
    disk = Disk(root)
    for operation in operations:
        disk.take(operation)
    for change in disk.pending:
        if kept():
            _apply(change)
    _write(disk.top, target, kept)


class Disk:
    """The entries of all directories below `root`, and those that no sync has reached."""

    def __init__(self, root: Path) -> None:
        self.top = Directory()
        self.pending: list[Change] = []
        self._root = root

    def take(self, operation: Operation) -> None:
        """Let an operation happen; what is not below the root is passed over."""
        path, name = operation.path, operation.path.name
        made = path == self._root and operation.kind is OperationKind.MKDIR
        if made or (path != self._root and self._root not in path.parents):
            return
        match operation.kind:
            case OperationKind.SYNC_DIR:
                self._sync(self._find(path))
            case OperationKind.MKDIR:
                self._change((self._find(path.parent), name, Directory()))
            case OperationKind.CREATE:
                self._change((self._find(path.parent), name, File()))
            case OperationKind.APPEND:
                self._file(path).now += operation.data
            case OperationKind.SYNC:
                file = self._file(path)
                file.now = file.synced = operation.data
            case OperationKind.RENAME:
                assert operation.target is not None
                node = self._find(path.parent).now[name]
                new_parent = self._find(operation.target.parent)
                self._change(
                    (self._find(path.parent), name, None),
                    (new_parent, operation.target.name, node),
                )
            case OperationKind.UNLINK | OperationKind.RMDIR:
                self._change((self._find(path.parent), name, None))

    def _change(self, *steps: tuple[Directory, str, File | Directory | None]) -> None:
        for directory, name, node in steps:
            _set(directory.now, name, node)
        self.pending.append(list(steps))

    def _sync(self, directory: Directory) -> None:
        for change in self.pending:
            if any(step[0] is directory for step in change):
                _apply(change)
        self.pending = [
            change for change in self.pending if not any(step[0] is directory for step in change)
        ]

    def _find(self, path: Path) -> Directory:
        directory = self.top
        for part in path.relative_to(self._root).parts:
            below = directory.now.get(part)
            if below is None:  # made by nobody whose operations are recorded: it was there
                below = directory.now[part] = directory.synced[part] = Directory()
            assert isinstance(below, Directory)
            directory = below
        return directory

    def _file(self, path: Path) -> File:
        file = self._find(path.parent).now[path.name]
        assert isinstance(file, File)
        return file


def _apply(change: Change) -> None:
    for directory, name, node in change:
        _set(directory.synced, name, node)


def _set(entries: dict[str, File | Directory], name: str, node: File | Directory | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


def _write(directory: Directory, target: Path, kept: Kept) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, node in directory.synced.items():
        if isinstance(node, Directory):
            _write(node, target / name, kept)
        else:
            (target / name).write_bytes(node.now if kept() else _torn(node, kept))


def _torn(file: File, kept: Kept) -> bytes:
    """Return what was synced, or that and a piece of what came after."""
    whole = file.now.startswith(file.synced) and kept()
    return file.now[: (len(file.synced) + len(file.now) + 1) // 2] if whole else file.synced
