"""The table of migrations: those that run, and the latest that ended.

Used in the event loop's thread. The numbers of a running one are asked for when somebody looks:
its worker replaces an immutable snapshot.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from xendpy.migration.progress import MigrationProgress, MigrationState
from xendpy.relocation import audit
from xendpy.relocation.incoming import OPERATION as DIALOGUE
from xendpy.relocation.operation import Incoming

HISTORY = 64  # ended migrations that are remembered

log = logging.getLogger(__name__)


class Way(StrEnum):
    """Which way a guest goes."""

    IN = "in"
    OUT = "out"


@dataclass(slots=True, kw_only=True, eq=False)
class Migration:
    """One row: `look` gives the latest snapshot, `abort` cuts it, by whom is its argument."""

    way: Way
    look: Callable[[], MigrationProgress]
    abort: Callable[[str], object]
    started_s: float = field(default_factory=time.time)
    last: MigrationProgress | None = None

    @property
    def progress(self) -> MigrationProgress:
        return self.last or self.look()

    @property
    def id(self) -> str:
        """The same on both hosts, as soon as a source that has given one has named it."""
        return self.progress.migration_id

    def end(self) -> None:
        """Keep the last snapshot, and nothing of the worker.

        What `look` and `abort` hold leads to its channel and session, and their buffers of 24 MiB.
        """
        last = self.last = self.progress
        self.look = lambda: last
        self.abort = lambda by: False

    def as_struct(self) -> dict[str, Any]:
        """Return what crosses XML-RPC; sizes are decimal strings where they may be large."""
        progress = self.progress
        return {
            "id": self.id,
            "direction": self.way.value,
            "domain": progress.name,
            "uuid": progress.uuid,
            "peer": progress.peer,
            "state": progress.state.value,
            "iteration": progress.iteration,
            "pages": str(progress.pages),
            "total_pages": str(progress.total_pages),
            "bytes": str(progress.bytes_done),
            "rate": f"{progress.rate_bytes_per_s:.0f}",
            "started": self.started_s,
            "elapsed": progress.elapsed_s,
            "reason": progress.reason,
        }


class Migrations:
    """Running and ended migrations; the callback object of the relocation server."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._running: list[Migration] = []
        self._coming: dict[Incoming, Migration] = {}
        self._ended: deque[Migration] = deque(maxlen=HISTORY)
        self._listeners: list[Callable[[Migration], None]] = []

    def on_end(self, listener: Callable[[Migration], None]) -> None:
        """Have `listener` called with every migration that has ended."""
        self._listeners.append(listener)

    def all(self) -> list[Migration]:
        """Return the ended ones, oldest first, then the running ones."""
        return [*self._ended, *self._running]

    def running(self) -> list[Migration]:
        return list(self._running)

    def find(self, prefix: str) -> Migration | None:
        """Return the migration whose id begins so.

        A running one comes before one that has ended, and of one that both leaves and comes here
        the leaving side: that is the one which was asked for.
        """
        found = [item for item in reversed(self.all()) if item.id.startswith(prefix)]
        found.sort(key=lambda item: item.last is not None)
        sides = [item for item in found if item.id == found[0].id]
        return min(sides, key=lambda item: item.way is Way.IN, default=None)

    def add(self, migration: Migration) -> None:
        """Enter a migration that begins."""
        self._running.append(migration)
        self._changed()

    def end(self, migration: Migration) -> None:
        """Move a migration to the ended ones, with its last snapshot."""
        self._running.remove(migration)
        migration.end()
        self._ended.append(migration)
        for listener in self._listeners:
            listener(migration)
        self._changed()

    def began(self, incoming: Incoming) -> None:
        """Enter one that comes in; called by the relocation server."""
        if not incoming.is_migration:
            return
        migration = Migration(way=Way.IN, look=lambda: incoming.progress, abort=incoming.abort)
        self._coming[incoming] = migration
        self.add(migration)

    def ended(self, incoming: Incoming) -> None:
        """Note that one that came in is over; called by the relocation server."""
        migration = self._coming.pop(incoming, None)
        if migration is None:
            return
        if incoming.request.op == DIALOGUE and not incoming.progress.name:
            # A dry run, or an end before anybody named a guest: no migration to remember.
            self._running.remove(migration)
            self._changed()
            return
        self.end(migration)

    def summary(self) -> str:
        """Return one line for the service manager."""
        running = self.running()
        if not running:
            return "idle"
        ways = [item.way for item in running]
        shown = ", ".join(_shown(item.progress) for item in running[:3])
        return f"{ways.count(Way.IN)} incoming, {ways.count(Way.OUT)} outgoing ({shown})"


def audit_migration(migration: Migration) -> None:
    """Write the audit line of a migration that ended."""
    progress = migration.progress
    audit.write(
        "relocation",
        direction=migration.way,
        id=migration.id,
        peer=progress.peer,
        name=progress.name,
        uuid=progress.uuid,
        result=progress.state.value,
        bytes=progress.bytes_done,
        reason=progress.reason,
    )


def succeeded(migration: Migration) -> bool:
    """Say whether a migration ended well."""
    return migration.progress.state is MigrationState.DONE


def _shown(progress: MigrationProgress) -> str:
    mib_per_s = progress.rate_bytes_per_s / (1 << 20)
    return f"{progress.name or progress.peer} {mib_per_s:.0f} MiB/s"
