"""The target's side of a migration from another xendpy host.

Runs in a worker thread. Every step is journalled before it is said or acted on: the guest is
never run before its source has released it, and never dropped once it was said to be received.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xendpy.errors import ChannelTimeout, HandshakeError, MigrationError, XendError
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.base import Hypervisor, RestoreSession
from xendpy.migration.arrival import Arrival, Publish, RecentBytes
from xendpy.migration.handover import Direction, Entry, Step
from xendpy.migration.home import home_of
from xendpy.migration.journal import Journal
from xendpy.migration.preflight import Check, Facts, failures
from xendpy.migration.progress import MigrationProgress, MigrationState, log_begin, log_end
from xendpy.migration.receive import drive
from xendpy.migration.reception import DEFAULT_RECEIVE_LIMITS, ReceiveLimits, explained
from xendpy.relocation import frames, packing, stripes, sums
from xendpy.relocation.channel import Channel
from xendpy.relocation.frames import FrameType
from xendpy.relocation.gathering import Gathering
from xendpy.relocation.image_source import ImageAborted, ImageSource
from xendpy.relocation.resolve import drop, give_up, take_over
from xendpy.relocation.stripes import Stripes
from xendpy.stream.xend import decode_body

log = logging.getLogger(__name__)

OPERATION = "xendpy-receive"
LIBXL = "libxl"  # an image may be a libxl stream with the header of xl before it
FEATURES = ("v1", LIBXL, stripes.FEATURE, *sums.offered(), *packing.offered())
IF_ASKED = (stripes.FEATURE, packing.ZSTD)  # what a source offers only where its user wants it
_REQUEST = re.compile(
    rf"\({OPERATION} \(version (?P<version>\d+)\) \(id (?P<id>[0-9a-f]{{32}})\) "
    r"\(host-id (?P<host>[0-9a-f-]{36})\) \(features \((?P<features>[a-z0-9 -]*)\)\)\)"
)


@dataclass(frozen=True, slots=True)
class Request:
    """A source's opening line, checked; `line` is all of it, which digests begin with."""

    id: str
    host_id: str
    features: tuple[str, ...]
    line: bytes


def opening(entry_id: str, own_host_id: str, asked: Sequence[str] = ()) -> bytes:
    """Return the line by which a source opens a migration; `asked` of IF_ASKED."""
    names = " ".join(name for name in FEATURES if name not in IF_ASKED or name in asked)
    return (
        f"({OPERATION} (version {frames.VERSION}) (id {entry_id}) "
        f"(host-id {own_host_id}) (features ({names})))\n"
    ).encode()


def parse_opening(text: str) -> Request:
    """Return a source's opening line, printed as a s-expression, as a request.

    Raises:
        HandshakeError: a field is missing, or the version is another.
    """
    match = _REQUEST.fullmatch(text)
    if match is None:
        raise HandshakeError(
            f"expected ({OPERATION} (version 1) (id HEX128) (host-id UUID) (features (...)))"
        )
    if int(match["version"]) != frames.VERSION:
        raise HandshakeError(
            f"version {match['version']} of {OPERATION} is not spoken here, {frames.VERSION} is"
        )
    line = f"{text}\n".encode()
    return Request(match["id"], match["host"], tuple(match["features"].split()), line)


def ready_line(own_host_id: str, request: Request) -> bytes:
    """Return the answer that takes a request on: the features both sides have."""
    names = " ".join(name for name in request.features if name in FEATURES)
    return f"(ready {OPERATION} (host-id {own_host_id}) (features ({names})))\n".encode()


def agree(channel: Channel, opened: bytes, ready: bytes) -> None:
    """Begin what both control lines say that both sides can do, on either side."""
    found = re.search(rb"\(features \(([^()]*)\)\)", ready)
    features = found[1].decode("ascii", "replace").split() if found else []
    if sums.FEATURE in features:
        channel.sums = sums.FrameSums(opened, ready)
    if packing.ZERO in features:
        channel.packer = packing.Packer(compress=packing.ZSTD in features)
    channel.streams = stripes.FEATURE in features


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one incoming migration needs of this host.

    `preflight` gives the checks of a guest against this host; `publish` gets each new snapshot of
    `progress`; `began` gets what another thread may cut; `gathering` has the migration's further
    connections.
    """

    hypervisor: Hypervisor
    journal: Journal
    host_id: str
    peer: str
    progress: MigrationProgress
    publish: Publish
    began: Callable[[Landing], None]
    preflight: Callable[[DomainConfig, Facts, bool], list[Check]]
    gathering: Gathering
    release_timeout_s: float = 300.0
    limits: ReceiveLimits = DEFAULT_RECEIVE_LIMITS


class Landing:
    """The part of a migration that another thread may cut; see relocation.operation."""

    def __init__(self, session: RestoreSession) -> None:
        self._session = session
        self.handing_over = False

    @property
    def ending(self) -> bool:
        """Whether the source may be about to release the guest."""
        return self.handing_over

    def cancel(self) -> None:
        """Make a call that blocks in the driver fail soon."""
        self._session.cancel()


def receive_from_xendpy(channel: Channel, request: Request, target: Target) -> Entry | None:
    """Take one guest in; return its journal entry, or None after a dry run.

    Raises:
        MigrationError: no guest came in; the source still has it and was told why.
        ChannelError: the connection broke; the journal says what is to come of the guest.
    """
    ready = ready_line(target.host_id, request)
    channel.send([ready])
    agree(channel, request.line, ready)
    limits = target.limits
    try:
        with channel.within(limits.config_timeout_s):
            _, body = frames.recv_frame(channel, FrameType.PLAN)
            plan = frames.parse_json(body)
            _, raw = frames.recv_frame(channel, FrameType.CONFIG, limit=limits.max_config_bytes)
    except (HandshakeError, ChannelTimeout) as error:
        raise _refuse(channel, str(error)) from error
    local = request.host_id == target.host_id
    config = _checked(channel, raw, plan, target, local=local)
    if plan.get("dry_run"):
        frames.send_frame(channel, FrameType.RESERVED)
        return None
    try:
        entry = target.journal.begin(_entry(request, config, plan, target, local=local))
    except MigrationError as error:
        raise _refuse(channel, str(error)) from error
    arrived = _take_image(channel, config, entry, target)
    return _hand_over(channel, arrived, target)


def _entry(
    request: Request, config: DomainConfig, plan: dict[str, Any], target: Target, *, local: bool
) -> Entry:
    return Entry(
        id=request.id,
        direction=Direction.IN,
        step=Step.INCOMING,
        name=config.name,
        uuid=config.uuid,
        peer=str(plan.get("host") or target.peer)[:255],
        peer_host_id=request.host_id,
        live=bool(plan.get("live")),
        local=local,
        home=home_of(config),
    )


def _checked(
    channel: Channel, raw: bytes, plan: dict[str, Any], target: Target, *, local: bool
) -> DomainConfig:
    try:
        config = DomainConfig.parse(raw, max_depth=target.limits.max_sxp_depth)
    except XendError as error:
        frames.send_json(channel, FrameType.CHECKS, {"checks": []})
        raise _refuse(channel, f"the guest's configuration cannot be read: {error}") from error
    checks = target.preflight(config, Facts.parse(plan.get("facts")), local)
    frames.send_json(channel, FrameType.CHECKS, {"checks": [check.to_json() for check in checks]})
    bad = failures(checks)
    if bad:
        if not plan.get("dry_run"):  # the audit trail says which guest it was
            target.publish(replace(target.progress, name=config.name, uuid=config.uuid))
        raise _refuse(channel, "; ".join(check.detail for check in bad))
    return config


def _refuse(channel: Channel, text: str) -> MigrationError:
    frames.send_frame(channel, FrameType.REFUSED, text.encode())
    return MigrationError(text)


@dataclass(frozen=True, slots=True)
class _Arrived:
    entry: Entry
    arrival: Arrival
    landing: Landing


def _take_image(channel: Channel, config: DomainConfig, entry: Entry, target: Target) -> _Arrived:
    """Receive the image into a new guest, and journal it as received."""
    progress = replace(target.progress, name=config.name, uuid=config.uuid)
    log_begin(progress)
    arrival: Arrival | None = None
    wire = Stripes(channel)
    try:
        with target.hypervisor.restore(config, migration_id=entry.id) as session:
            source = ImageSource(wire)
            recent = RecentBytes(source)
            arrival = Arrival(session, recent, config, progress, target.publish)
            landing = Landing(session)
            target.began(landing)
            target.gathering.open()
            frames.send_frame(channel, FrameType.RESERVED)
            if channel.streams:
                wire.widen(_further(channel, target.gathering))
            steps = decode_body(config.guest_type, target.limits.stream(config))
            drive(steps, recent, arrival, passed=recent.settle)
            source.finish()
            wire.narrow()
            landing.handing_over = True
            # A resolver that meanwhile said not-received makes the step fail.
            session.complete()
            received = target.journal.advance(entry.id, Direction.IN, Step.RECEIVED)
            return _Arrived(received, arrival, landing)
    except Exception as error:
        told = error if isinstance(error, ImageAborted) else explained(error)
        text = getattr(told, "reason", "") or str(told)
        give_up(entry, target.journal, target.hypervisor, text)
        if not isinstance(error, ImageAborted):
            kind = FrameType.FAILED if arrival is not None else FrameType.REFUSED
            _try_send(channel, kind, text)
        failure = MigrationError(text, migration_id=entry.id)
        ended = replace(progress, state=MigrationState.FAILED, reason=text)
        if arrival is not None:
            ended = arrival.close(MigrationState.FAILED, str(failure))
        target.publish(ended)
        log_end(ended)
        raise failure from error
    finally:
        wire.narrow()


def _further(channel: Channel, gathering: Gathering) -> list[stripes.Lane]:
    """Return the connections over which the source says that the image comes."""
    _, body = frames.recv_frame(channel, FrameType.STREAMS)
    count = frames.parse_json(body).get("count")
    if not isinstance(count, int) or not 0 < count <= stripes.MAX_STREAMS:
        raise HandshakeError(
            f"STREAMS with count {count}, expected 1 to {stripes.MAX_STREAMS}", peer=channel.peer
        )
    return gathering.take(count - 1)


def _try_send(channel: Channel, kind: FrameType, text: str) -> None:
    try:
        frames.send_frame(channel, kind, text.encode())
    except (XendError, OSError) as error:
        log.debug("%s could not be said: %s", kind.name, error)


def _hand_over(channel: Channel, arrived: _Arrived, target: Target) -> Entry:
    """Say received, and take the guest over once it is released."""
    entry, arrival = arrived.entry, arrived.arrival
    frames.send_frame(channel, FrameType.RECEIVED)
    with channel.deadline(target.release_timeout_s):
        kind, text = frames.recv_frame(channel, FrameType.RELEASED, FrameType.ABORT)
    if kind is FrameType.ABORT:
        failure = MigrationError(text.decode("utf-8", "replace"), migration_id=entry.id)
        drop(entry, target.journal, target.hypervisor, failure.reason)
        log_end(arrival.close(MigrationState.ABORTED, str(failure)))
        raise failure
    began_s = time.monotonic()
    entry = take_over(entry, target.journal, target.hypervisor)
    report = {"resume_s": round(time.monotonic() - began_s, 6)}
    frames.send_json(channel, FrameType.RUNNING, report)
    log_end(arrival.close(MigrationState.DONE), arrival.downtime())
    with channel.deadline(target.release_timeout_s):
        frames.recv_frame(channel, FrameType.FORGOTTEN)
    entry = target.journal.advance(entry.id, Direction.IN, Step.CLOSED)
    _try_send(channel, FrameType.CLOSED, "")
    return entry
