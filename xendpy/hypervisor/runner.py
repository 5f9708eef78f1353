"""The seam between the embedded store and whatever can make one of its guests run.

The store alone only rests guests. A runner executes some of them as processes of this host, which
outlive the daemon. The store gives domids, keeps names and uuids unique, and decides which copy
of a guest counts; the runner owns the process, its memory and its console.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from xendpy.guest.domain import DomainConfig, DomainState
from xendpy.guest.memory import GuestMemory
from xendpy.guest.memoryfile import MemoryFile
from xendpy.guest.pages import DirtyBitmap, Types
from xendpy.stream.records import Record


class Running(Protocol):
    """One guest with a process. Any thread may ask for properties; the rest comes serialised."""

    @property
    def domid(self) -> int:
        """The number it was started with; it survives a restart of the daemon."""
        ...

    @property
    def config(self) -> DomainConfig: ...

    @property
    def state(self) -> DomainState: ...

    @property
    def cpu_time_s(self) -> float: ...

    @property
    def start_time_s(self) -> float:
        """Seconds since the epoch at which it was created or came in."""
        ...

    @property
    def note(self) -> str:
        """Return the reason given to `hold`, or an empty string."""
        ...

    @property
    def memory(self) -> GuestMemory:
        """The guest's own memory, shared with its process: views of it change while it runs."""
        ...

    @property
    def types(self) -> Types:
        """uint8 per pfn of `memory`, `PageType` values; XTAB where there is no frame."""
        ...

    @property
    def exit_fd(self) -> int:
        """A file descriptor of this object that becomes readable when the process has ended."""
        ...

    @property
    def end_reason(self) -> str:
        """Why the guest has ended: poweroff, reboot or crash; empty while it lives."""
        ...

    def opening(self) -> Iterator[Record]:
        """Yield what a stream says before memory: StreamStart, PvInfo, P2mFrames."""
        ...

    def closing(self) -> Iterator[Record]:
        """Yield what a stream says after memory, End included. The guest is suspended."""
        ...

    def track_dirty(self) -> None:
        """Start recording writes, with nothing dirty."""
        ...

    def take_dirty(self) -> DirtyBitmap:
        """Return the frames written since the last call, and forget them; final once suspended."""
        ...

    def pause(self) -> None: ...

    def unpause(self) -> None: ...

    def suspend(self) -> None:
        """Stop the guest with its cooperation; returns when nothing is written any more."""
        ...

    def resume(self) -> None:
        """Let a suspended guest go on as it was before, running or paused; drops the note."""
        ...

    def hold(self, reason: str) -> None:
        """Keep a suspended guest suspended, durably noting why; `resume` ends it."""
        ...

    def rename(self, name: str) -> None:
        """Take another name, durably."""
        ...

    def set_aside(self, name: str, uuid: str) -> None:
        """Give a guest that has ended another name and uuid."""
        ...

    def shutdown(self, reason: str) -> None:
        """Ask the guest to end: poweroff, reboot, suspend, halt or crash."""
        ...

    def console(self) -> bytes:
        """Return what the guest has printed, as far back as it is kept."""
        ...

    def destroy(self) -> None:
        """End the process and free its memory. May be called again."""
        ...

    def close(self) -> None:
        """Let go of the guest, which lives on."""
        ...


class Arriving(Protocol):
    """A guest on its way in, whose memory is the runner's from the first page on.

    Exactly one of `start` and `discard` ends it; both may follow a failure. If the daemon ends
    before `start`, nothing is left; after it, `GuestRunner.adopt` finds the guest, paused.
    """

    @property
    def memory(self) -> GuestMemory:
        """What to receive into, empty at first; it grows with the pfns asked for."""
        ...

    def start(self, types: Types, records: Iterable[Record]) -> Running:
        """Make a guest, paused, of the whole image; takes milliseconds and copies nothing.

        Raises:
            HypervisorError: the image or its records cannot be run.
        """
        ...

    def discard(self) -> None:
        """End the process and free the memory; nothing after `start` has returned."""
        ...


class GuestRunner(Protocol):
    """Starts guests, and finds those that an earlier daemon started."""

    def can_run(self, config: DomainConfig) -> bool:
        """Whether this runner can execute such a guest; the store asks before anything else."""
        ...

    def create(self, config: DomainConfig, *, domid: int) -> Running:
        """Build a new guest, paused.

        Raises:
            OutOfMemory: no room.
            HypervisorError: the process did not come up.
        """
        ...

    def start_from(
        self,
        memory: MemoryFile,
        types: Types,
        records: Iterable[Record],
        config: DomainConfig,
        *,
        domid: int,
    ) -> Running:
        """Build a guest, paused, from an image at rest.

        `memory` and `types` belong to the store and go away after the call: the runner copies.
        Nothing of the guest has run when this returns, so the store may still discard it.

        Raises:
            OutOfMemory: no room.
            HypervisorError: the image or its records cannot be run.
        """
        ...

    def receive(self, config: DomainConfig, *, domid: int) -> Arriving:
        """Return room for a guest that comes in live, with a process that waits for it.

        Raises:
            OutOfMemory: no room.
            HypervisorError: the process did not come up.
        """
        ...

    def adopt(self) -> Sequence[Running]:
        """Return the guests that live on from an earlier daemon; called once, at start-up.

        Where the store still has a whole image of the same uuid, the process never ran
        (`start_from` was cut short) and the store destroys it.
        """
        ...
