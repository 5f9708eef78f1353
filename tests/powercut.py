"""A disk that forgets: what a power cut leaves of the operations of `Durable`.

`Recorder` is given to a Durable. `leave(operations, root, target)` builds below `target` what was
below `root` after these operations, either all of them (the process was killed) or only what a
sync had brought to disk (the power was cut). A rename is one step on disk too, as in every
journalling file system: syncing either directory brings both ends of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from xendpy.hypervisor.durable import Operation, OperationKind


@dataclass
class File:
    now: bytes = b""
    synced: bytes = b""


@dataclass
class Directory:
    now: dict[str, File | Directory] = field(default_factory=dict)
    synced: dict[str, File | Directory] = field(default_factory=dict)
    # Where entries moved to since the last sync of either directory.
    left_for: list[tuple[str, Directory]] = field(default_factory=list)
    came_from: list[tuple[str, Directory]] = field(default_factory=list)

    def sync(self) -> None:
        self.synced = dict(self.now)
        for name, source in self.came_from:
            source.synced.pop(name, None)
        for name, target in self.left_for:
            if name in target.now:
                target.synced[name] = target.now[name]
        self.came_from, self.left_for = [], []


class Recorder:
    """Keeps every operation, and what a synced file held at that moment."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def __call__(self, operation: Operation) -> None:
        if operation.kind is OperationKind.SYNC:
            data = operation.path.read_bytes()
            operation = Operation(operation.kind, operation.path, data=data)
        self.operations.append(operation)


def leave(operations: list[Operation], root: Path, target: Path, *, only_synced: bool) -> None:
    """Build below `target` what these operations leave of an empty `root`."""
    top = Directory()
    for operation in operations:
        _take(top, root, operation)
    _write(top, target, only_synced)


def _take(top: Directory, root: Path, operation: Operation) -> None:
    if operation.path == root:
        if operation.kind is OperationKind.SYNC_DIR:
            top.sync()
        return
    if root not in operation.path.parents:
        return
    parent, name = _find(top, root, operation.path.parent), operation.path.name
    match operation.kind:
        case OperationKind.MKDIR:
            parent.now[name] = Directory()
        case OperationKind.CREATE:
            parent.now[name] = File()
        case OperationKind.APPEND:
            _file(parent, name).now += operation.data
        case OperationKind.SYNC:
            file = _file(parent, name)
            file.now = file.synced = operation.data
        case OperationKind.RENAME:
            assert operation.target is not None
            new_parent = _find(top, root, operation.target.parent)
            new_parent.now[operation.target.name] = parent.now.pop(name)
            if new_parent is not parent:
                new_parent.came_from.append((name, parent))
                parent.left_for.append((operation.target.name, new_parent))
        case OperationKind.UNLINK | OperationKind.RMDIR:
            del parent.now[name]
        case OperationKind.SYNC_DIR:
            directory = parent.now[name]
            assert isinstance(directory, Directory)
            directory.sync()


def _find(top: Directory, root: Path, path: Path) -> Directory:
    directory = top
    for part in path.relative_to(root).parts:
        below = directory.now[part]
        assert isinstance(below, Directory)
        directory = below
    return directory


def _file(parent: Directory, name: str) -> File:
    file = parent.now[name]
    assert isinstance(file, File)
    return file


def _write(directory: Directory, target: Path, only_synced: bool) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, node in (directory.synced if only_synced else directory.now).items():
        if isinstance(node, Directory):
            _write(node, target / name, only_synced)
        else:
            (target / name).write_bytes(node.synced if only_synced else node.now)
