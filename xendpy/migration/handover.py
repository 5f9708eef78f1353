"""Who owns a guest, at every moment: the steps of a hand-over.

One rule: no copy becomes runnable before the other has stopped being so, and no copy is dropped
before the other is durable. Every step is journalled (journal.py) before it is acted on; after a
crash the journal says whose guest it is.

Between two xendpy hosts:

    source                              target
    SENDING   the guest is here         INCOMING  nothing is whole yet
                        <- received --  RECEIVED  whole, durable, paused; not ours
    RELEASED  never run it again
              -- released ->            OWNED     ours; unpause
                        <- running --   RUNNING
    MOVED     destroy the copy
              -- forgotten ->           CLOSED
    CLOSED

A source that has not written RELEASED owns its guest and may go on at any time (KEPT): the
target never runs a copy that was not released. A source that has written it never runs the guest
again unless the target says that it has none and never will (not-received, a tombstone).

To an old xend there is one answer at best: the source writes SENT before the end of the stream
leaves, and goes to MOVED on `(ok)`, to KEPT on `(err`. Silence leaves SENT: in doubt, held, for
the operator to settle.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    OUT = "out"
    IN = "in"


class Step(StrEnum):
    """Where a hand-over stands. The first six are a source's, the others a target's."""

    SENDING = "sending"
    SENT = "sent"  # old xend only: the end of the stream may have left
    RELEASED = "released"
    MOVED = "moved"
    KEPT = "kept"  # the guest stays; a xendpy peer is still to be told
    CLOSED = "closed"

    INCOMING = "incoming"
    RECEIVED = "received"
    OWNED = "owned"
    RUNNING = "running"
    NOT_RECEIVED = "not-received"  # the tombstone: whatever comes later is not taken


# What may follow what; a closed entry's `result` keeps how it ended.
NEXT: Mapping[Step, frozenset[Step]] = {
    Step.SENDING: frozenset({Step.SENT, Step.RELEASED, Step.KEPT, Step.MOVED}),
    Step.SENT: frozenset({Step.MOVED, Step.KEPT}),
    Step.RELEASED: frozenset({Step.MOVED, Step.KEPT}),
    Step.MOVED: frozenset({Step.CLOSED}),
    Step.KEPT: frozenset({Step.CLOSED}),
    Step.INCOMING: frozenset({Step.RECEIVED, Step.NOT_RECEIVED}),
    Step.RECEIVED: frozenset({Step.OWNED, Step.NOT_RECEIVED}),
    Step.OWNED: frozenset({Step.RUNNING}),
    Step.RUNNING: frozenset({Step.CLOSED}),
    Step.NOT_RECEIVED: frozenset({Step.CLOSED}),
    Step.CLOSED: frozenset(),
}
IN_DOUBT = frozenset({Step.SENT, Step.RELEASED, Step.RECEIVED})
AWAY = frozenset({Step.RELEASED, Step.MOVED, Step.SENT})
RECLAIMED = "reclaimed"  # the result, besides the steps, of an entry closed or still at MOVED


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One migration in the journal; times are seconds since the epoch.

    `id` is 32 hex digits of a secret: who knows it may ask about the migration.
    `result` is empty until it is closed, then moved, kept, running, not-received or reclaimed
    (which a guest that has moved may be before its peer is told).
    `home` is the configuration, as it came, of a guest that is to be managed here as well.
    """

    id: str
    direction: Direction
    step: Step
    name: str
    uuid: str
    peer: str
    address: str = ""
    port: int = 0
    tls: bool = False
    peer_host_id: str = ""  # empty: the peer is a xend, or has not said yet
    live: bool = False
    local: bool = False
    number: int = 0  # counts up: a clock that was put back must not change what came last
    created_s: float = 0.0
    updated_s: float = 0.0
    reason: str = ""
    result: str = ""
    home: str = ""

    @property
    def key(self) -> tuple[str, Direction]:
        """What tells entries apart: a localhost migration is in the journal twice."""
        return self.id, self.direction

    @property
    def in_doubt(self) -> bool:
        return self.step in IN_DOUBT

    @property
    def closed(self) -> bool:
        return self.step is Step.CLOSED


def new_id() -> str:
    """Return a fresh migration id: 128 random bits as 32 hex digits."""
    return secrets.token_hex(16)
