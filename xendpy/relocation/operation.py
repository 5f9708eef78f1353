"""What the server and its operations share: one peer that asked for something long.

Abort and progress are for any thread, everything else for the worker's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, TypeAlias

from xendpy.migration.progress import MigrationProgress, MigrationState
from xendpy.relocation import resolve, stripes
from xendpy.relocation.channel import Channel
from xendpy.relocation.handshake import Receive


class Cancellable(Protocol):
    """The part of a migration that another thread may cut."""

    @property
    def ending(self) -> bool:
        """Whether cutting it may cost a guest: the sender may have let go of its copy."""
        ...

    def cancel(self) -> None:
        """Make a call that blocks in the driver fail soon."""
        ...


class Incoming:
    """One peer's request, on its way through a worker.

    `progress` is a snapshot, replaced by assignment. `channel` is the worker's own.
    """

    def __init__(self, channel: Channel, request: Receive, progress: MigrationProgress) -> None:
        self.channel = channel
        self.request = request
        self.progress = progress
        self.aborted_by = ""
        self._stopped = threading.Event()
        self._work: Cancellable | None = None

    def show(self, progress: MigrationProgress) -> None:
        """Replace the snapshot."""
        self.progress = progress

    def fail(self, reason: str) -> None:
        """Make the snapshot a final one, if it is none."""
        if not self.progress.state.final:
            self.progress = replace(self.progress, state=MigrationState.FAILED, reason=reason)

    def begin(self, work: Cancellable) -> None:
        """Say what `abort` is to cancel besides the channel; an abort that came before counts."""
        self._work = work
        if self._stopped.is_set():
            work.cancel()

    @property
    def id(self) -> str:
        """The migration's; this host's own until the source has given one."""
        return self.progress.migration_id

    @property
    def is_migration(self) -> bool:
        """Whether the request brings a guest, and is no part of another migration."""
        return brings_guest(self.request)

    @property
    def ending(self) -> bool:
        """Whether the guest is being handed over. Any thread."""
        return self._work is not None and self._work.ending

    def abort(self, by: str) -> None:
        """Cut it. Any thread, any number of times."""
        self.aborted_by = self.aborted_by or by
        self._stopped.set()
        self.channel.abort()
        # From the mark of the end on the driver is needed to keep what came.
        if self._work is not None and not self._work.ending:
            self._work.cancel()

    def wait_stopped(self, timeout_s: float) -> bool:
        """Let `timeout_s` pass, or less: True means that `abort` was called."""
        return self._stopped.wait(timeout_s)


def brings_guest(request: Receive) -> bool:
    """Return whether the request is for a migration, and no part of another one."""
    return request.op not in (resolve.OPERATION, stripes.OPERATION)


Operation: TypeAlias = Callable[[Incoming], None]  # blocking; runs in a worker thread
Operations: TypeAlias = Mapping[str, Operation]
