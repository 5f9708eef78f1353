"""Settle a hand-over after a broken connection: the source redials and asks.

    (xendpy-resolve (id HEX128) (host-id SOURCE) (step STEP))
    (ok (state STATE) (host-id TARGET))

STEP is what the source's journal says: `released` (the guest is the target's if it has it),
`kept` (the source keeps its guest) or `moved` (the source's copy is gone). STATE is what the
target then stands by: `running` (it owns the guest), `not-received` (it has none and, by a
tombstone, never will), `unknown` (it never heard of that migration, which settles nothing), or
`received` where it could not act yet. A target whose disk does not take down what it heard answers
`(err ...)` instead, and is asked again. The target never needs to reach the source.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from xendpy.errors import (
    DomainNotFound,
    DomainStateError,
    HandshakeError,
    JournalError,
    MigrationError,
)
from xendpy.guest.domain import Domain, DomainState
from xendpy.hypervisor.base import Hypervisor
from xendpy.migration.handover import Direction, Entry, Step
from xendpy.migration.journal import Journal
from xendpy.relocation.channel import Channel
from xendpy.relocation.client import ask

log = logging.getLogger(__name__)

OPERATION = "xendpy-resolve"
ENDED = (DomainState.SHUTDOWN, DomainState.CRASHED)
STEPS = (Step.RELEASED, Step.KEPT, Step.MOVED)
_FIELD = re.compile(r"\((id|host-id|step|state) ([A-Za-z0-9-]+)\)")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a target stands by, and which host it is."""

    state: str
    host_id: str


def field(text: str, name: str) -> str:
    """Return the value of `(name value)` in a peer's line; empty if there is none."""
    fields: dict[str, str] = dict(_FIELD.findall(text))
    return fields.get(name, "")


def request(entry: Entry, own_host_id: str) -> bytes:
    """Return the line by which the source of `entry` asks."""
    return f"({OPERATION} (id {entry.id}) (host-id {own_host_id}) (step {entry.step}))\n".encode()


def ask_target(channel: Channel, entry: Entry, own_host_id: str) -> Answer:
    """Ask the target of `entry`.

    Raises:
        HandshakeError: it answered something else.
    """
    reply = ask(channel, request(entry, own_host_id))
    fields = dict(_FIELD.findall(reply.text))
    if "state" not in fields or "host-id" not in fields:
        raise HandshakeError(f"no state in the answer to {OPERATION}", peer=channel.peer)
    return Answer(fields["state"], fields["host-id"])


def answer_source(
    text: str,
    *,
    journal: Journal,
    hypervisor: Hypervisor,
    own_host_id: str,
    abort: Callable[[str], None],
) -> str:
    """Return the reply to a source's request `text` (the printed list), having acted on it.

    `abort(id)` cuts this host's own connection of that migration, if it still has one. Runs in a
    worker thread.

    Raises:
        HandshakeError: the request lacks a field.
        JournalError: what was heard cannot be written down: no answer may settle anything.
    """
    fields = dict(_FIELD.findall(text))
    if not re.fullmatch(r"[0-9a-f]{32}", fields.get("id", "")) or fields.get("step") not in STEPS:
        raise HandshakeError(f"expected ({OPERATION} (id HEX128) (step released|kept|moved))")
    entry = journal.get(fields["id"], Direction.IN)
    state = "unknown"
    if entry is not None:
        try:
            state = _act(entry, Step(fields["step"]), journal, hypervisor, abort)
        except JournalError:  # refused, so that the source asks again
            raise
        except MigrationError:  # the connection's own worker was quicker: say what it came to
            entry = journal.get(fields["id"], Direction.IN)
            state = "received" if entry is None else _state(entry)
    log.info("migration %s: the source says %s, answered %s", fields["id"], fields["step"], state)
    return f"(ok (state {state}) (host-id {own_host_id}))\n"


def _act(
    entry: Entry,
    said: Step,
    journal: Journal,
    hypervisor: Hypervisor,
    abort: Callable[[str], None],
) -> str:
    if entry.step is Step.INCOMING:
        # The source has given up on that connection, or lost it: it will never be whole.
        # From here alone: its own connection may have received it whole in this moment.
        entry = journal.advance(
            entry.id,
            Direction.IN,
            Step.NOT_RECEIVED,
            reason="the source redialled",
            seen=Step.INCOMING,
        )
        abort(entry.id)
    elif entry.step in (Step.RECEIVED, Step.OWNED) and said is Step.RELEASED:
        entry = take_over(entry, journal, hypervisor)
    elif entry.step is Step.RECEIVED and said is Step.KEPT:
        entry = drop(entry, journal, hypervisor, "the source keeps its guest")
    if said is not Step.RELEASED and entry.step in (Step.RUNNING, Step.NOT_RECEIVED):
        entry = journal.advance(entry.id, Direction.IN, Step.CLOSED)
    return _state(entry)


def _state(entry: Entry) -> str:
    if entry.step in (Step.OWNED, Step.RUNNING) or entry.result == Step.RUNNING:
        return "running"
    if entry.step is Step.NOT_RECEIVED or entry.result == Step.NOT_RECEIVED:
        return "not-received"
    return "received"


def take_over(entry: Entry, journal: Journal, hypervisor: Hypervisor) -> Entry:
    """Make a received guest this host's own, and let it run where the driver can run it.

    Raises:
        MigrationError: somebody else settled the migration, or the guest was lost here before it
            ran: then its source is told that nothing was received.
        HypervisorError: the guest is ours and could not be unpaused.
    """
    domain = arrived(entry, hypervisor)
    if entry.step is Step.RECEIVED and not _is_whole(domain, hypervisor):
        reason = "its memory was lost here before it was handed over"
        drop(entry, journal, hypervisor, reason)
        raise MigrationError(f"{entry.name}: {reason}", migration_id=entry.id)
    entry = journal.advance(entry.id, Direction.IN, Step.OWNED)
    if domain is not None:
        try:
            hypervisor.unpause(domain)
        except DomainStateError as error:
            log.info("migration %s: %s stays paused: %s", entry.id, entry.name, error)
    return journal.advance(entry.id, Direction.IN, Step.RUNNING)


def _is_whole(domain: Domain | None, hypervisor: Hypervisor) -> bool:
    """Whether the guest that came is still what was received: its process, if any, may be gone."""
    try:
        return domain is not None and hypervisor.state(domain) not in ENDED
    except DomainNotFound:
        return False


def drop(entry: Entry, journal: Journal, hypervisor: Hypervisor, reason: str) -> Entry:
    """Drop a received guest that another host owns; the tombstone comes first."""
    entry = journal.advance(entry.id, Direction.IN, Step.NOT_RECEIVED, reason=reason)
    domain = arrived(entry, hypervisor)
    if domain is not None:
        hypervisor.destroy(domain)
    return entry


def give_up(entry: Entry, journal: Journal, hypervisor: Hypervisor, reason: str) -> None:
    """End a migration whose guest was never said to be received: nobody can have released it.

    So nobody needs its tombstone, and a source that redialled before this host had begun the
    entry would never have it closed.
    """
    with suppress(MigrationError):  # the source redialled, and was answered
        journal.advance(entry.id, Direction.IN, Step.NOT_RECEIVED, reason=reason)
    domain = arrived(entry, hypervisor)
    if domain is not None:
        hypervisor.destroy(domain)
    with suppress(MigrationError):
        journal.advance(entry.id, Direction.IN, Step.CLOSED)


def arrived(entry: Entry, hypervisor: Hypervisor) -> Domain | None:
    """Return the guest that came in by a migration, if it is still here.

    One from a xend has no migration id: its uuid was free when it came.
    """
    if entry.peer_host_id:
        return hypervisor.arrival(entry.id)
    try:
        return hypervisor.find(entry.uuid)
    except DomainNotFound:
        return None
