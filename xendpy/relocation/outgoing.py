"""The source's side of a migration, from the first control line to the last word.

Runs in a worker thread, inside `with hypervisor.save(domain) as source`: each function ends the
save session in exactly one way, and the journal says so before it is done.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from xendpy.errors import (
    ChannelError,
    HandshakeError,
    JournalError,
    MigrationAborted,
    MigrationError,
    StreamTruncated,
    UnannouncedState,
    XendError,
)
from xendpy.hypervisor.base import PageSource, RecordSource
from xendpy.migration.handover import Direction, Entry, Journal, Step
from xendpy.migration.precopy import PrecopyCancelled
from xendpy.migration.preflight import Check, finite
from xendpy.migration.send import (
    CancelToken,
    Encoder,
    MigrationPlan,
    Observer,
    Pieces,
    Sender,
    has_pages,
)
from xendpy.relocation import frames, stripes
from xendpy.relocation.channel import Channel
from xendpy.relocation.client import ask
from xendpy.relocation.frames import FrameType
from xendpy.relocation.handshake import Err, Ok, Ready, parse_reply
from xendpy.relocation.stripes import Lane, Stripes

log = logging.getLogger(__name__)

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
_FAILURES = (XendError, PrecopyCancelled)


def send_to_xend(transfer: Transfer) -> Outcome:
    """Send the guest to an unmodified xend, and believe only its `(ok)`.

    Raises:
        MigrationError: it stays here, and runs as before; the text is the peer's where it has one.
        UnannouncedState: the same, with another head it can be sent; nothing is journalled.
    """
    channel = transfer.channel

    def write(pieces: Pieces) -> None:
        _refused_meanwhile(channel)
        channel.send(pieces)

    try:
        answer = ask(channel, b"receive\n")
        if not isinstance(answer, Ready):
            raise HandshakeError(f"the peer answered {answer} to receive", peer=channel.peer)
        transfer.watcher.negotiated("xend")
        sender = transfer.sender(write)
        channel.send([transfer.envelope])
        sender.send_memory()
        transfer.cancel.seal()
        transfer.release()
    except UnannouncedState:
        raise
    except _FAILURES as error:
        raise _stays(transfer, error) from error
    return _hand_over_to_xend(transfer, sender)


def _hand_over_to_xend(transfer: Transfer, sender: Sender) -> Outcome:
    # The end of the stream makes the guest theirs, whether or not we ever hear of it.
    try:
        transfer.advance(Step.SENT)
    except JournalError as error:
        return _unwritten(transfer, error)
    transfer.watcher.handing_over()
    channel = transfer.channel
    try:
        sender.send_tail()
        channel.half_close()
        line = channel.recv_line(MAX_REPLY, timeout_s=transfer.plan.verdict_timeout_s)
        verdict = parse_reply(line) if line else None
    except (ChannelError, StreamTruncated, HandshakeError) as error:
        verdict, line = _error_behind(channel), b""
        if verdict is None:
            return _in_doubt(transfer, _text(error))
    if isinstance(verdict, Ok):
        transfer.watcher.running_there(0.0)
        try:
            transfer.advance(Step.MOVED)
        except JournalError as error:
            return _in_doubt(transfer, f"it said (ok), but {error}")
        transfer.source.relinquish()
        with contextlib.suppress(JournalError):  # written later; see Transfers
            transfer.advance(Step.CLOSED)
        return Outcome.MOVED
    if isinstance(verdict, Err):
        raise _stays(transfer, HandshakeError(verdict.text, peer=channel.peer))
    return _in_doubt(transfer, "the peer closed the connection without a verdict")


def _in_doubt(transfer: Transfer, reason: str) -> Outcome:
    text = f"{transfer.entry.peer} may or may not run it: {reason}"
    transfer.source.hold(text)
    with contextlib.suppress(JournalError):
        transfer.advance(Step.SENT, text)
    return Outcome.IN_DOUBT


def _unwritten(transfer: Transfer, error: JournalError) -> Outcome:
    """Keep a guest whose release could not be written down, and so was not said.

    Raises:
        MigrationError: it goes on here.
    """
    if error.placed:
        # The next daemon might read it as released: first that must be taken back.
        try:
            transfer.advance(Step.KEPT, str(error))
        except JournalError:
            transfer.source.hold(f"not sent to {transfer.entry.peer}: {error}")
            return Outcome.IN_DOUBT
    raise _stays(transfer, error) from error


def _stays(transfer: Transfer, error: Exception) -> MigrationError:
    """Let the guest go on here, journal it, and return what the user is told."""
    transfer.source.resume()
    told: Err | None = None
    if isinstance(error, ChannelError) and not transfer.cancel.cancelled:
        xendpy = transfer.entry.peer_host_id != ""
        told = (_failure_behind if xendpy else _error_behind)(transfer.channel)
    reason = told.text if told else _text(error)
    with contextlib.suppress(JournalError):  # SENDING says the same; see Transfers
        transfer.advance(Step.KEPT, reason)
    if transfer.cancel.cancelled or isinstance(error, PrecopyCancelled):
        by = transfer.cancel.by or "the limits: " + reason
        return MigrationAborted(by, migration_id=transfer.entry.id)
    peer = transfer.entry.peer
    from_peer = told is not None or isinstance(error, HandshakeError)
    text = f"{reason} (from {peer})" if from_peer else reason
    return MigrationError(text, migration_id=transfer.entry.id)


def _text(error: Exception) -> str:
    if isinstance(error, StreamTruncated):
        return "the peer closed the connection"
    return str(getattr(error, "reason", error))


def _error_behind(channel: Channel) -> Err | None:
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


def _refused_meanwhile(channel: Channel) -> None:
    """Raise the peer's error if it has said one while we were sending."""
    if not channel.readable():
        return
    told = _error_behind(channel)
    text = told.text if told else "the peer closed the connection in the middle of the stream"
    raise HandshakeError(text, peer=channel.peer)


def send_to_xendpy(transfer: Transfer, plan: dict[str, Any]) -> Outcome:
    """Send the guest to another xendpy after `(ready xendpy-receive ...)`; `plan` is the PLAN.

    Raises:
        MigrationError: it stays here, and runs as before.
    """
    channel = transfer.channel
    wire = Stripes(channel)
    try:
        transfer.watcher.negotiated("xendpy")
        reserve(channel, plan, transfer.envelope)
        if channel.streams:
            _widen(wire, transfer)
        count = _send_image(transfer, wire)
        transfer.cancel.seal()
        transfer.watcher.handing_over()
        frames.send_frame(wire, FrameType.IMAGE_END, frames.IMAGE_BYTES.pack(count))
        wire.narrow()
        _expect(channel, FrameType.RECEIVED, transfer.plan.verdict_timeout_s)
        transfer.release()
    except _FAILURES as error:
        _say_abort(wire, _text(error))
        raise _stays(transfer, error) from error
    finally:
        wire.narrow()
    # From here on this host never runs the guest again unless the target says it has none.
    try:
        transfer.advance(Step.RELEASED)
    except JournalError as error:
        _say_abort(wire, str(error))
        return _unwritten(transfer, error)
    try:
        frames.send_frame(channel, FrameType.RELEASED)
        report = _expect(channel, FrameType.RUNNING, transfer.plan.verdict_timeout_s)
    except XendError as error:
        return _released(transfer, _text(error))
    # First: freeing the copy took 0.1 s for 256 MiB, which is no part of the downtime.
    transfer.watcher.running_there(resume_seconds(report))
    try:
        transfer.advance(Step.MOVED)
    except JournalError as error:
        return _released(transfer, str(error))
    transfer.source.relinquish()
    with contextlib.suppress(XendError):  # the resolver says it again, until it is heard
        frames.send_frame(channel, FrameType.FORGOTTEN)
        _expect(channel, FrameType.CLOSED, transfer.plan.verdict_timeout_s)
        transfer.advance(Step.CLOSED)
    return Outcome.MOVED


def resume_seconds(report: bytes) -> float:
    """Return how long unpausing took, by a target's RUNNING; 0 if it does not say so sensibly."""
    try:
        said = frames.parse_json(report).get("resume_s")
    except HandshakeError:
        return 0.0  # whatever it says: it runs the guest
    return max(0.0, finite(said))


def _released(transfer: Transfer, reason: str) -> Outcome:
    """Leave it to the resolver to find out whether a guest that was released runs there."""
    transfer.source.hold(f"released to {transfer.entry.peer}, which has not confirmed yet")
    with contextlib.suppress(JournalError):
        transfer.advance(Step.RELEASED, reason)
    return Outcome.IN_DOUBT


def reserve(channel: Channel, plan: dict[str, Any], config: bytes) -> None:
    """Send PLAN and CONFIG, and return when the target has reserved the guest.

    Raises:
        HandshakeError: it refused; the text is its own.
    """
    frames.send_json(channel, FrameType.PLAN, plan)
    frames.send_frame(channel, FrameType.CONFIG, config)
    frames.recv_frame(channel, FrameType.CHECKS)
    kind, text = frames.recv_frame(channel, FrameType.RESERVED, FrameType.REFUSED)
    if kind is FrameType.REFUSED:
        raise HandshakeError(text.decode("utf-8", "replace"), peer=channel.peer)


def parse_checks(body: bytes) -> list[Check]:
    """Return the checks of a CHECKS frame; what is none is passed over.

    Raises:
        HandshakeError: the body is no JSON object.
    """
    said = frames.parse_json(body).get("checks")
    items = said if isinstance(said, list) else []
    return [Check.parse(item) for item in items if isinstance(item, dict)]


def _widen(wire: Stripes, transfer: Transfer) -> None:
    """Open the further connections, as many as the target takes, and use them."""
    lanes: list[Lane] = []
    try:
        for index in range(1, transfer.plan.streams):
            lanes.append(_lane(transfer, index))
    except XendError as error:
        log.info("migration %s: no connection more: %s", transfer.entry.id, _text(error))
    wire.widen(lanes)
    frames.send_json(transfer.channel, FrameType.STREAMS, {"count": wire.count})


def _lane(transfer: Transfer, index: int) -> Lane:
    with contextlib.ExitStack() as undo:
        channel = undo.enter_context(transfer.dial())
        answer = ask(channel, stripes.opening(transfer.entry.id, index))
        if not isinstance(answer, Ready) or answer.op != stripes.OPERATION:
            raise HandshakeError(f"the peer answered {answer}", peer=channel.peer)
        undo.pop_all()
        lane = Lane(channel)
        lane.start()
        return lane


def _send_image(transfer: Transfer, wire: Stripes) -> int:
    channel = transfer.channel
    count = 0

    def write(pieces: Pieces) -> None:
        nonlocal count
        if channel.readable():
            _expect(channel, FrameType.RECEIVED, ERROR_TIMEOUT_S)
            raise HandshakeError("the peer said received in the middle of the image")
        count += frames.send_image(wire, pieces, channel.packer)

    sender = transfer.sender(write)
    sender.send_memory()
    sender.send_tail()
    return count


def _expect(channel: Channel, wanted: FrameType, timeout_s: float) -> bytes:
    """Return the body of the frame `wanted`.

    Raises:
        HandshakeError: the peer says FAILED.
        ChannelTimeout: it says nothing for `timeout_s` seconds.
    """
    with channel.deadline(timeout_s):
        kind, body = frames.recv_frame(channel, wanted, FrameType.FAILED)
    if kind is FrameType.FAILED:
        raise HandshakeError(body.decode("utf-8", "replace"), peer=channel.peer)
    return body


def _say_abort(wire: Stripes, reason: str) -> None:
    # Usually the connection is what broke: the resolver tells the peer then.
    with contextlib.suppress(XendError):
        frames.send_frame(wire, FrameType.ABORT, reason.encode())
