"""Sends a guest to another xendpy, from its reservation to the last word.

Runs in a worker thread, inside `with hypervisor.save(domain) as source`: the save session ends in
exactly one way, and the journal says so before it is done.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from xendpy.errors import (
    HandshakeError,
    JournalError,
    MigrationError,
    XendError,
)
from xendpy.migration.handover import Step
from xendpy.migration.preflight import Check, finite
from xendpy.migration.send import (
    Pieces,
)
from xendpy.relocation import frames, stripes
from xendpy.relocation.channel import Channel
from xendpy.relocation.client import ask
from xendpy.relocation.frames import FrameType
from xendpy.relocation.handshake import Ready
from xendpy.relocation.outgoing import (
    ERROR_TIMEOUT_S,
    FAILURES,
    Outcome,
    Transfer,
    stays,
    text_of,
    unwritten,
)
from xendpy.relocation.stripes import Lane, Stripes

log = logging.getLogger(__name__)


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
    except FAILURES as error:
        _say_abort(wire, text_of(error))
        raise stays(transfer, error) from error
    finally:
        wire.narrow()
    # From here on this host never runs the guest again unless the target says it has none.
    try:
        transfer.advance(Step.RELEASED)
    except MigrationError as error:
        _say_abort(wire, str(error))
        return unwritten(transfer, error)
    try:
        frames.send_frame(channel, FrameType.RELEASED)
        report = _expect(channel, FrameType.RUNNING, transfer.plan.verdict_timeout_s)
    except XendError as error:
        return _released(transfer, text_of(error))
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
        log.info("migration %s: no connection more: %s", transfer.entry.id, text_of(error))
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
