"""The ops of xendpy hosts, `xendpy-receive`, `-stream` and `-resolve`, as the server runs them.

Run in a worker thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock

from xendpy import sxp
from xendpy.errors import ChannelError, HandshakeError, XendError
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.base import Hypervisor
from xendpy.migration.journal import Journal
from xendpy.migration.preflight import Check, Facts
from xendpy.migration.progress import MigrationState
from xendpy.migration.reception import DEFAULT_RECEIVE_LIMITS, ReceiveLimits
from xendpy.relocation import stripes
from xendpy.relocation.channel import Channel
from xendpy.relocation.gathering import Gathering
from xendpy.relocation.handshake import error_reply, ready
from xendpy.relocation.incoming import Target, parse_opening, receive_from_xendpy
from xendpy.relocation.operation import Incoming
from xendpy.relocation.resolve import answer_source

log = logging.getLogger(__name__)


class Landings:
    """The incoming migrations under way, by their secret id, for whoever has to cut one."""

    def __init__(self) -> None:
        self._incoming: dict[str, tuple[Incoming, Gathering]] = {}
        self._lock = Lock()

    def enter(self, migration_id: str, incoming: Incoming) -> Gathering:
        """Note a migration; return where its further connections are gathered."""
        gathering = Gathering()
        with self._lock:
            self._incoming[migration_id] = (incoming, gathering)
        return gathering

    def leave(self, migration_id: str) -> None:
        """Forget a migration, and let its further connections go."""
        with self._lock:
            landing = self._incoming.pop(migration_id, None)
        if landing is not None:
            landing[1].close()

    def join(self, migration_id: str, index: int, channel: Channel) -> stripes.Lane:
        """Enter a further connection of a migration under way.

        Raises:
            HandshakeError: there is no such migration, or it does not want one.
        """
        with self._lock:
            landing = self._incoming.get(migration_id)
        if landing is None:
            raise HandshakeError("no such migration is coming in", peer=channel.peer)
        return landing[1].join(index, channel)

    def abort(self, migration_id: str) -> None:
        """Cut the connection of a migration whose source has redialled. Any thread."""
        with self._lock:
            landing = self._incoming.get(migration_id)
        if landing is not None:
            landing[0].abort("the source, which redialled")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveFromXendpy:
    """The op `xendpy-receive`; call it with each peer's `Incoming`."""

    hypervisor: Hypervisor
    journal: Journal
    host_id: str
    landings: Landings
    preflight: Callable[[DomainConfig, Facts, bool], list[Check]]
    release_timeout_s: float
    limits: ReceiveLimits = DEFAULT_RECEIVE_LIMITS

    def __call__(self, incoming: Incoming) -> None:
        """Take one guest in. Raises nothing that a peer could cause."""
        try:
            request = parse_opening(sxp.show(incoming.request.value))
        except HandshakeError as error:
            _reply_error(incoming, error)
            return
        incoming.show(replace(incoming.progress, migration_id=request.id))
        gathering = self.landings.enter(request.id, incoming)
        target = Target(
            hypervisor=self.hypervisor,
            journal=self.journal,
            host_id=self.host_id,
            peer=incoming.channel.peer,
            progress=incoming.progress,
            publish=incoming.show,
            began=incoming.begin,
            preflight=self.preflight,
            gathering=gathering,
            release_timeout_s=self.release_timeout_s,
            limits=self.limits,
        )
        try:
            receive_from_xendpy(incoming.channel, request, target)
        except XendError as error:
            log.info("migration %s from %s: %s", request.id[:8], incoming.channel.peer, error)
            if not incoming.progress.state.final:
                failed = replace(incoming.progress, state=MigrationState.FAILED, reason=str(error))
                incoming.show(failed)
        finally:
            self.landings.leave(request.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinStreams:
    """The op `xendpy-stream`: one more connection for a migration under way."""

    landings: Landings

    def __call__(self, incoming: Incoming) -> None:
        """Move bytes until the image has ended. Raises nothing that a peer could cause."""
        try:
            migration_id, index = stripes.parse_opening(sxp.show(incoming.request.value))
            lane = self.landings.join(migration_id, index, incoming.channel)
            incoming.channel.send([ready(stripes.OPERATION)])
            lane.run()
        except ChannelError as error:
            log.info("%s cannot be one more connection: %s", incoming.channel.peer, error)
        except XendError as error:
            _reply_error(incoming, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolve:
    """The op `xendpy-resolve`: a source asks what became of its guest."""

    hypervisor: Hypervisor
    journal: Journal
    host_id: str
    landings: Landings

    def __call__(self, incoming: Incoming) -> None:
        """Answer one source. Raises nothing that a peer could cause."""
        try:
            reply = answer_source(
                sxp.show(incoming.request.value),
                journal=self.journal,
                hypervisor=self.hypervisor,
                own_host_id=self.host_id,
                abort=self.landings.abort,
            )
            incoming.channel.send([reply.encode()])
        except ChannelError as error:
            log.info("the answer did not reach %s: %s", incoming.channel.peer, error)
        except XendError as error:
            _reply_error(incoming, error)


def _reply_error(incoming: Incoming, error: XendError) -> None:
    log.warning("refused %s: %s", incoming.channel.peer, error)
    try:
        incoming.channel.send([error_reply(str(error))])
    except ChannelError as broken:
        log.debug("the error did not reach %s: %s", incoming.channel.peer, broken)
