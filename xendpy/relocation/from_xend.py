"""The ops `receive` and `sslreceive`: a guest from an unmodified xend, and what that peer is told.

Runs in a worker thread. A refused sender gets the err line, time to acknowledge it, and then a
closed socket with its payload unread: a real xend's next write fails, it shows our text, and its
guest goes on. A receiver that reads on after refusing makes it destroy the guest and report
success.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from xendpy.config import XendConfig
from xendpy.errors import (
    ChannelAborted,
    ChannelError,
    DomainStateError,
    JournalError,
    StreamError,
    XendError,
)
from xendpy.hypervisor.base import Hypervisor
from xendpy.migration.handover import Direction, Entry, Step
from xendpy.migration.home import home_of
from xendpy.migration.journal import Journal
from xendpy.migration.progress import log_end
from xendpy.migration.reception import Received, ReceiveLimits, Reception
from xendpy.relocation.channel import Channel, EofKind
from xendpy.relocation.handshake import OK, ready, refusal
from xendpy.relocation.operation import Incoming
from xendpy.stream.xend import INVALID

log = logging.getLogger(__name__)

RECEIVE = "receive"
SSLRECEIVE = "sslreceive"
ACKNOWLEDGED_S = 3.0  # how long xend >= 4.0 itself waits for an error's text
MAX_TRAILING = 16 << 20  # bytes read behind a whole stream before the peer is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveFromXend:
    """The operation; call it with each peer's `Incoming`.

    `word` is what the peer said: `receive`, or `sslreceive`, by which xend means the same over
    TLS, and over the plain port the same bytes. xend never gets its `(ok)` through there, and
    its stream may end without close_notify: every body has its own mark of the end but that of a
    HVM guest, whose device-model record ends where the connection does. It counts as whole if it
    begins with its magic and the peer ended with FIN, over TLS as over the plain port.

    `at_home` is given the configuration of each guest that came to be managed here.
    `eof_timeout_s` is for the sender's close after a whole stream, `unpause_delay_s` passes
    between that and the guest's start here.
    """

    hypervisor: Hypervisor
    journal: Journal
    limits: ReceiveLimits
    eof_timeout_s: float
    at_home: Callable[[str], None]
    unpause_delay_s: float = 0.0
    word: str = RECEIVE

    @classmethod
    def of(
        cls,
        config: XendConfig,
        hypervisor: Hypervisor,
        journal: Journal,
        at_home: Callable[[str], None],
        word: str = RECEIVE,
    ) -> ReceiveFromXend:
        """Return the operation as the configuration file wants it."""
        return cls(
            word=word,
            hypervisor=hypervisor,
            journal=journal,
            at_home=at_home,
            limits=ReceiveLimits.of(config),
            eof_timeout_s=config.eof_timeout_s,
            unpause_delay_s=config.unpause_delay_s,
        )

    def __call__(self, incoming: Incoming) -> None:
        """Take one guest in. Raises nothing that a peer could cause."""
        channel = incoming.channel
        reception = Reception(
            channel,
            self.hypervisor,
            limits=self.limits,
            progress=incoming.progress,
            publish=incoming.show,
            hurry=channel.within(self.limits.config_timeout_s),
        )
        incoming.begin(reception)
        try:
            channel.send([ready(self.word)])
        except ChannelError as error:
            log_end(reception.reject(error).progress)
            return
        outcome = reception.run()
        if isinstance(outcome, Received):
            log_end(outcome.progress, outcome.downtime)
            self._take_over(incoming, outcome)
        else:
            log_end(outcome.progress)
            refuse(channel, told(outcome.error))

    def _take_over(self, incoming: Incoming, received: Received) -> None:
        """Say `(ok)`, wait until the sender has let go, and let the guest run."""
        try:
            _say_ok(incoming.channel)
            gone = wait_gone(incoming.channel, self.eof_timeout_s)
        except ChannelAborted:
            gone = False
        if not gone:
            self._doubt(incoming, received)
            return
        # It is ours from here on, and so is its home: should we end in what follows, it is known.
        self.at_home(home_of(received.config))
        # xend >= 4.1 closes just before it destroys its copy.
        incoming.wait_stopped(self.unpause_delay_s)
        self._unpause(received)

    def _doubt(self, incoming: Incoming, received: Received) -> None:
        """Journal that the sender may still have its copy: an operator settles it."""
        config, peer = received.config, incoming.channel.peer
        try:
            entry = self.journal.begin(
                Entry(
                    id=incoming.id,
                    direction=Direction.IN,
                    step=Step.RECEIVED,
                    name=config.name,
                    uuid=config.uuid,
                    peer=peer,
                    reason="the sender has not closed its connection, its copy may still be there",
                    home=home_of(config),
                )
            )
        except JournalError as error:
            log.error("%s stays paused, %s may still have it: %s", config.name, peer, error)
            return
        log.warning(
            "%s stays paused: %s (%s); look there, then `xm migrations settle %s keep|discard`",
            config.name,
            entry.reason,
            peer,
            entry.id[:8],
        )

    def _unpause(self, received: Received) -> None:
        name, here = received.config.name, received.domain.name
        began_s = time.monotonic()
        try:
            if not self.hypervisor.capabilities().runs_guests:
                log.info("%s rests here, paused", name)
                return
            self.hypervisor.unpause(received.domain)
        except DomainStateError as error:
            log.info("%s rests here, paused: %s", name, error)
        except XendError as error:
            log.error("%s has come and does not run: %s; then xm unpause %s", name, error, here)
        else:
            log.info("%s runs here, unpaused in %.3f s", name, time.monotonic() - began_s)


def refuse(channel: Channel, text: str) -> None:
    """Tell the peer why, and wait until its kernel has it. The caller closes, reading nothing."""
    try:
        channel.send([refusal(text)])
        channel.wait_acknowledged(ACKNOWLEDGED_S)
    except ChannelError as error:
        log.debug("the refusal did not reach the peer: %s", error)


def told(error: XendError) -> str:
    """Return what a peer is told of `error`: xend's own words where it has some."""
    if isinstance(error, StreamError) and error.reason.startswith(INVALID):
        return error.reason
    return str(error)


def wait_gone(channel: Channel, timeout_s: float) -> bool:
    """Wait until the peer closes after a whole stream; False if it does not.

    Here a reset counts as closed: xend 3.x closes with our `(ok)` unread, and then its kernel
    sends a reset instead of an end.
    """
    deadline_s = time.monotonic() + timeout_s
    start = channel.offset
    while (left_s := deadline_s - time.monotonic()) > 0:
        kind = channel.wait_eof(left_s)
        if kind is not EofKind.DATA:
            _note_trailing(channel, channel.offset - start)
            return kind is not EofKind.TIMEOUT
        if channel.offset - start > MAX_TRAILING:
            break
    _note_trailing(channel, channel.offset - start)
    return False


def _note_trailing(channel: Channel, count: int) -> None:
    if count:
        log.warning("%s sent %d bytes after the end of the stream", channel.peer, count)


def _say_ok(channel: Channel) -> None:
    try:
        channel.send([OK])
    except ChannelAborted:
        raise
    except ChannelError as error:  # every xend has closed both directions by then
        log.debug("(ok) did not reach the peer: %s", error)
