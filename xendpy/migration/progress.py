"""How a migration stands: immutable snapshots, replaced by assignment, readable by any thread."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum

log = logging.getLogger(__name__)


class MigrationState(StrEnum):
    """Where a migration is; the last three are final."""

    CONNECTING = "connecting"
    NEGOTIATING = "negotiating"
    PRECOPY = "precopy"
    STOP_AND_COPY = "stop and copy"
    COMPLETING = "completing"
    DONE = "done"
    FAILED = "failed"
    ABORTED = "aborted"

    @property
    def final(self) -> bool:
        return self in (MigrationState.DONE, MigrationState.FAILED, MigrationState.ABORTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class DowntimeReport:
    """For how long no vcpu ran, suspend at the source to unpause at the target, in seconds.

    A part that this side cannot know is None: an old sender does not say when it suspended, so
    that its last iteration is measured from the mark of the end on, and of a toolstack's last
    iteration nothing is known but that it was.
    """

    suspend_s: float | None = None
    last_iteration_s: float | None = None
    vcpu_state_s: float | None = None
    resume_s: float | None = None

    @property
    def total_s(self) -> float:
        """The sum of the known parts."""
        parts = (self.suspend_s, self.last_iteration_s, self.vcpu_state_s, self.resume_s)
        return sum(part for part in parts if part is not None)

    @property
    def at_least(self) -> bool:
        """Whether it was longer than `total_s`: the last iteration is not in it."""
        return self.last_iteration_s is None

    def __str__(self) -> str:
        return f"{'at least ' if self.at_least else ''}{self.total_s * 1000:.0f} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One finished iteration of an outgoing migration; `last` = the guest stood still.

    `dirtied_pages` None: a toolstack sends it, and what was written meanwhile is known when that
    has been sent.
    """

    index: int
    sent_pages: int
    dirtied_pages: int | None
    seconds: float
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationProgress:
    """One migration at one moment.

    `pages` counts every page that crossed the wire, sent again or not; `iteration` is 0 during
    the first round; `started_s` is seconds since the epoch, `elapsed_s` the time since then.
    `name` and `uuid` are empty until the configuration has been read.
    """

    migration_id: str
    peer: str
    state: MigrationState = MigrationState.CONNECTING
    name: str = ""
    uuid: str = ""
    total_pages: int = 0
    bytes_done: int = 0
    pages: int = 0
    iteration: int = 0
    started_s: float = 0.0
    elapsed_s: float = 0.0
    reason: str = ""
    # An outgoing migration knows more: what is left of this round (None: only a toolstack knows),
    # what the guest writes, for how long it would stand still if it were stopped now, and every
    # finished round.
    remaining_pages: int | None = 0
    dirty_pages_per_s: float = 0.0
    expected_downtime_s: float | None = None
    current_bytes_per_s: float = 0.0
    setup_s: float = 0.0
    protocol: str = ""
    converged: bool | None = None
    downtime: DowntimeReport | None = None
    rounds: tuple[Round, ...] = ()

    @property
    def rate_bytes_per_s(self) -> float:
        """Bytes per second since the beginning."""
        return self.bytes_done / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def summary(self) -> str:
        """Return pages, bytes, seconds and rate in one phrase."""
        return (
            f"{self.pages} pages in {self.iteration + 1} rounds, {self.bytes_done} bytes,"
            f" {self.elapsed_s:.1f} s, {self.rate_bytes_per_s / (1 << 20):.1f} MiB/s"
        )


def log_begin(progress: MigrationProgress, doing: str = "receiving", way: str = "from") -> None:
    """Write the one line that says that a migration has begun."""
    log.info(
        f"migration %s: {doing} %s (%s) {way} %s",
        progress.migration_id,
        progress.name,
        progress.uuid,
        progress.peer,
    )


def log_end(
    progress: MigrationProgress, downtime: DowntimeReport | None = None, way: str = "from"
) -> None:
    """Write the one line that says how a migration ended."""
    ended = progress.state.value if not progress.reason else f"{progress.state.value}: "
    log.info(
        f"migration %s: %s {way} %s %s%s; %s%s",
        progress.migration_id,
        progress.name or "a guest",
        progress.peer,
        ended,
        progress.reason,
        progress.summary(),
        f", downtime {downtime}" if downtime is not None else "",
    )
