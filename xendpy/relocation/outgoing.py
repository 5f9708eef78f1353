"""One guest on its way out, whatever its peer speaks: what a send needs, and how one fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from xendpy.errors import (
    ChannelError,
    HandshakeError,
    JournalError,
    MigrationAborted,
    MigrationError,
    StreamTruncated,
    XendError,
)
from xendpy.hypervisor.base import PageSource, RecordSource
from xendpy.migration.handover import Direction, Entry, Step
from xendpy.migration.journal import Journal
from xendpy.migration.precopy import PrecopyCancelled
from xendpy.migration.send import (
    CancelToken,
    Encoder,
    MigrationPlan,
    Observer,
    Pieces,
    Sender,
    has_pages,
)
from xendpy.relocation import frames
from xendpy.relocation.channel import Channel
from xendpy.relocation.frames import FrameType
from xendpy.relocation.handshake import Err, parse_reply

ERROR_TIMEOUT_S = 3.0  # how long xend >= 4.0 waits for the text behind a broken connection
MAX_REPLY = 1024


class Outcome(StrEnum):
    """How a send ended."""

    MOVED = "moved"
    KEPT = "kept"
    IN_DOUBT = "in doubt"


class Watcher(Observer, Protocol):
    """An observer that also hears of the hand-over's steps."""

    def negotiated(self, protocol: str) -> None: ...

    def handing_over(self) -> None: ...

    def running_there(self, resume_s: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Everything one send needs; `entry` is journalled as SENDING already.

    `dial` connects to the same peer once more.
    """

    channel: Channel
    source: PageSource | RecordSource
    encoder: Encoder
    envelope: bytes
    journal: Journal
    entry: Entry
    plan: MigrationPlan
    watcher: Watcher
    cancel: CancelToken
    dial: Callable[[], Channel]

    def advance(self, step: Step, reason: str = "") -> None:
        """Journal a step of this migration."""
        self.journal.advance(self.entry.id, Direction.OUT, step, reason=reason)

    def release(self) -> None:
        """Have a toolstack give the guest up; a guest of our own stands still already."""
        if not has_pages(self.source):
            self.source.release()  # type: ignore[union-attr]  # TypeGuard: one way only

    def sender(self, write: Callable[[Pieces], None]) -> Sender:
        """Return the sender of this guest's records to `write`."""
        return Sender(
            source=self.source,
            encoder=self.encoder,
            write=write,
            plan=self.plan,
            observer=self.watcher,
            cancel=self.cancel,
        )


# What can go wrong on the way and leaves the guest here, with a text for the user.
FAILURES = (XendError, PrecopyCancelled)


def unwritten(transfer: Transfer, error: MigrationError) -> Outcome:
    """Keep a guest whose release could or might not be written down, and so was not said.

    Raises:
        MigrationError: it goes on here.
    """
    if isinstance(error, JournalError) and error.placed:
        # The next daemon might read it as released: first that must be taken back.
        try:
            transfer.advance(Step.KEPT, str(error))
        except JournalError:
            transfer.source.hold(f"not sent to {transfer.entry.peer}: {error}")
            return Outcome.IN_DOUBT
    raise stays(transfer, error) from error


def stays(transfer: Transfer, error: Exception) -> MigrationError:
    """Let the guest go on here, journal it, and return what the user is told."""
    transfer.source.resume()
    told: Err | None = None
    if isinstance(error, ChannelError) and not transfer.cancel.cancelled:
        xendpy = transfer.entry.peer_host_id != ""
        told = (_failure_behind if xendpy else error_behind)(transfer.channel)
    reason = told.text if told else text_of(error)
    with contextlib.suppress(JournalError):  # SENDING says the same; see Transfers
        transfer.advance(Step.KEPT, reason)
    if transfer.cancel.cancelled or isinstance(error, PrecopyCancelled):
        by = transfer.cancel.by or "the limits: " + reason
        return MigrationAborted(by, migration_id=transfer.entry.id)
    peer = transfer.entry.peer
    from_peer = told is not None or isinstance(error, HandshakeError)
    text = f"{reason} (from {peer})" if from_peer else reason
    return MigrationError(text, migration_id=transfer.entry.id)


def text_of(error: Exception) -> str:
    """Return what a user is told of a failure."""
    if isinstance(error, StreamTruncated):
        return "the peer closed the connection"
    return str(getattr(error, "reason", error))


def error_behind(channel: Channel) -> Err | None:
    """Return the error line that a peer left before it closed, if there is one."""
    try:
        line = channel.recv_line(MAX_REPLY, timeout_s=ERROR_TIMEOUT_S)
        answer = parse_reply(line) if line else None
    except (XendError, OSError):
        return None
    return answer if isinstance(answer, Err) else None


def _failure_behind(channel: Channel) -> Err | None:
    """Return what another xendpy said before it closed, if it did: it was not read in time."""
    try:
        with channel.deadline(ERROR_TIMEOUT_S):
            _, text = frames.recv_frame(channel, FrameType.FAILED)
    except (XendError, OSError):
        return None
    return Err(text.decode("utf-8", "replace"))
