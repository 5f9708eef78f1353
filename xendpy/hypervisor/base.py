"""The driver interface: everything a migration asks of whoever runs the guests.

All calls block and come from one worker thread at a time; only `cancel` may come from another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from xendpy.guest.domain import Domain, DomainConfig, DomainState, DomainSummary, GuestType
from xendpy.guest.pages import DirtyBitmap, PageBatch, Pfns
from xendpy.stream.libxl import XlHeader
from xendpy.stream.records import Pages, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver can do; callers choose by it before they start."""

    guest_types: frozenset[GuestType]
    live_save: frozenset[GuestType]  # can be sent while they run
    runs_guests: bool
    free_memory_bytes: int
    total_memory_bytes: int


def _same(name: str) -> str:
    return name


def _none(path: str) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What a guest's bridges and disks are on this host.

    `allows_disk`: a guest may have the disk of that path, and its host may be told of it. Each of
    `objections` refuses the guest; `notes` say what it will miss here.
    """

    bridge: Callable[[str], str] = _same
    disk: Callable[[str], str] = _same
    allows_disk: Callable[[str], bool] = _none
    objections: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class RestoreSession(Protocol):
    """One guest on its way in. Leaving the `with` without `complete` or `keep` discards it."""

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        """Make the frames of `batch` exist, with these types, and return writable views.

        The views hold the frames that carry data, in stream order: guest memory itself, or memory
        that `apply` takes them from. They are valid until the next call of any method, or the
        exit. After a `Verify` record nothing of the guest changes.

        Raises:
            OutOfMemory: no room for the frames; `apply` may find out only then.
        """
        ...

    def apply(self, record: Record) -> None:
        """Take one record in; for `Pages`, the views just returned are full."""
        ...

    def complete(self) -> Domain:
        """Make the guest durable and return it, paused. The whole image has arrived."""
        ...

    def keep(self, reason: str) -> str:
        """Keep what has arrived as a partial guest, never started by itself; say where."""
        ...

    def rest(self) -> BinaryIO:
        """Return a file, kept with a partial guest, for the part of the stream nobody decoded."""
        ...

    def cancel(self) -> None:
        """Make a call that blocks in the driver fail soon. Any thread."""
        ...


class SaveSession(Protocol):
    """One guest on its way out. Exactly one of relinquish, resume and hold ends it."""

    def relinquish(self) -> None:
        """Destroy the local copy: another host owns the guest."""
        ...

    def resume(self) -> None:
        """Let the guest go on here."""
        ...

    def hold(self, reason: str) -> None:
        """Leave the guest suspended: who owns it is in doubt."""
        ...

    def cancel(self) -> None:
        """Make a call that blocks in the driver fail soon. Any thread."""
        ...


class PageSource(SaveSession, Protocol):
    """A save session whose pages we read, and whose pre-copy we run."""

    @property
    def config(self) -> DomainConfig: ...

    @property
    def nr_pages(self) -> int:
        """The highest pfn + 1."""
        ...

    @property
    def live(self) -> bool:
        """Whether the guest runs, so that its pages can become dirty."""
        ...

    def opening(self) -> Iterator[Record]:
        """Yield what comes before memory: StreamStart, PvInfo, policies, P2mFrames."""
        ...

    def present(self) -> DirtyBitmap:
        """Return the frames that exist: what iteration 0 sends."""
        ...

    def track_dirty(self) -> None:
        """Start recording writes."""
        ...

    def take_dirty(self) -> DirtyBitmap:
        """Return the frames written since the last call, and forget them.

        After `suspend` the answer is final.
        """
        ...

    def read(self, pfns: Pfns) -> Pages:
        """Return the pages with their current types; XTAB = gone. Valid until the next call."""
        ...

    def suspend(self) -> None:
        """Stop the guest's vcpus; nothing is written from here on."""
        ...

    def closing(self) -> Iterator[Record]:
        """Yield what comes after memory, up to and including End."""
        ...


class RecordSource(SaveSession, Protocol):
    """A save session of a toolstack's records: it runs pre-copy itself, or nothing runs."""

    @property
    def config(self) -> DomainConfig: ...

    @property
    def live(self) -> bool:
        """Whether the guest runs while its records are read."""
        ...

    @property
    def at_rest(self) -> bool:
        """Whether `records` may be called again, and yields the same."""
        ...

    @property
    def scratch(self) -> Path:
        """A directory with room for what must be written down before it can be sent."""
        ...

    def header(self) -> XlHeader:
        """Return what the toolstack's own format has before the records."""
        ...

    def records(self) -> Iterator[Record]:
        """Yield every record of the image, first to last."""
        ...

    def release(self) -> None:
        """Give the guest up here: the target holds it whole. After the last record, once.

        From then on only `resume` brings it back; leaving the `with` without a choice means
        `hold`.

        Raises:
            HypervisorError: the toolstack did not, and the guest goes on here.
        """
        ...


class Hypervisor(Protocol):
    """A driver."""

    @property
    def name(self) -> str: ...

    @property
    def host_id(self) -> str:
        """The uuid of this host's state directory, the same for as long as it exists."""
        ...

    def capabilities(self) -> Capabilities: ...

    def domains(self) -> list[DomainSummary]:
        """Return every live guest, ascending by domid, domain 0 not among them."""
        ...

    def find(self, name_or_id: str) -> Domain:
        """Return the live guest by name, then domid, then uuid.

        Raises:
            DomainNotFound: there is none.
        """
        ...

    def state(self, domain: Domain) -> DomainState:
        """Return what a live guest is doing; quicker than to list all.

        Raises:
            DomainNotFound: it is not there any more.
        """
        ...

    def place(self, config: DomainConfig) -> Placement:
        """Say how a guest that is to come in would fit here, without reserving anything."""
        ...

    def restore(
        self, config: DomainConfig, *, migration_id: str = ""
    ) -> AbstractContextManager[RestoreSession]:
        """Reserve name, uuid and room for a guest, or refuse, before any page is read.

        `migration_id` is the migration that brings it: the guest that `save` opened with the same
        id, for a migration to this very host, may keep the same name and uuid.

        Raises:
            DomainExists: name or uuid is taken.
            OutOfMemory: no room.
            HypervisorError: the driver cannot take this guest.
        """
        ...

    def arrival(self, migration_id: str) -> Domain | None:
        """Return the guest that came in by that migration and is still here, if there is one.

        A localhost migration's two copies have one uuid: this tells them apart, after a restart
        as well.
        """
        ...

    def save(
        self, domain: Domain, *, migration_id: str = "", live: bool = False
    ) -> AbstractContextManager[PageSource | RecordSource]:
        """Open a guest for sending, by that migration, or for saving.

        `live`: a toolstack that runs pre-copy itself lets the guest run meanwhile; only where
        `capabilities` says that it can. Leaving the `with` without choosing means `resume` before
        the last record, else `hold`.
        """
        ...

    def create(self, config: DomainConfig) -> Domain:
        """Build a new guest, paused.

        Raises:
            Unsupported: this driver cannot run such a guest.
        """
        ...

    def pause(self, domain: Domain) -> None: ...

    def unpause(self, domain: Domain) -> None: ...

    def destroy(self, domain: Domain) -> None: ...

    def hold(self, domain: Domain, reason: str) -> None:
        """Suspend a guest and keep it so, durably: another host may own it."""
        ...

    def release_hold(self, domain: Domain) -> None:
        """Let a guest that is suspended, held or not, go on as it was before; else nothing."""
        ...

    def shutdown(self, domain: Domain, reason: str) -> None:
        """Ask the guest to end: poweroff, reboot, suspend, halt or crash."""
        ...

    def rename(self, domain: Domain, name: str) -> Domain: ...

    def close(self) -> None:
        """Let go of locks and files; guests stay as they are."""
        ...
