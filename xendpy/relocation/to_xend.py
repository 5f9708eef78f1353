"""Sends a guest to a xend, from the first control line to the verdict, if there is one.

Runs in a worker thread, inside `with hypervisor.save(domain) as source`: the save session ends in
exactly one way, and the journal says so before it is done.
"""

from __future__ import annotations

import contextlib

from xendpy.errors import (
    ChannelError,
    HandshakeError,
    JournalError,
    MigrationError,
    StreamTruncated,
    UnannouncedState,
)
from xendpy.migration.handover import Step
from xendpy.migration.send import (
    Pieces,
    Sender,
)
from xendpy.relocation.channel import Channel
from xendpy.relocation.client import ask
from xendpy.relocation.handshake import Err, Ok, Ready, parse_reply
from xendpy.relocation.outgoing import (
    FAILURES,
    MAX_REPLY,
    Outcome,
    Transfer,
    error_behind,
    stays,
    text_of,
    unwritten,
)


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
    except FAILURES as error:
        raise stays(transfer, error) from error
    return _hand_over_to_xend(transfer, sender)


def _hand_over_to_xend(transfer: Transfer, sender: Sender) -> Outcome:
    # The end of the stream makes the guest theirs, whether or not we ever hear of it.
    try:
        transfer.advance(Step.SENT)
    except MigrationError as error:
        return unwritten(transfer, error)
    transfer.watcher.handing_over()
    channel = transfer.channel
    try:
        sender.send_tail()
        channel.half_close()
        line = channel.recv_line(MAX_REPLY, timeout_s=transfer.plan.verdict_timeout_s)
        verdict = parse_reply(line) if line else None
    except _Refused as error:
        raise stays(transfer, error) from error
    except (ChannelError, StreamTruncated, HandshakeError) as error:
        verdict, line = error_behind(channel), b""
        if verdict is None:
            return _in_doubt(transfer, text_of(error))
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
        raise stays(transfer, HandshakeError(verdict.text, peer=channel.peer))
    return _in_doubt(transfer, "the peer closed the connection without a verdict")


def _in_doubt(transfer: Transfer, reason: str) -> Outcome:
    text = f"{transfer.entry.peer} may or may not run it: {reason}"
    transfer.source.hold(text)
    with contextlib.suppress(JournalError):
        transfer.advance(Step.SENT, text)
    return Outcome.IN_DOUBT


class _Refused(HandshakeError):
    """The peer has said that it does not take the guest."""


def _refused_meanwhile(channel: Channel) -> None:
    """Raise the peer's error if it has said one while we were sending."""
    if not channel.readable():
        return
    if told := error_behind(channel):
        raise _Refused(told.text, peer=channel.peer)
    text = "the peer closed the connection in the middle of the stream"
    raise HandshakeError(text, peer=channel.peer)
