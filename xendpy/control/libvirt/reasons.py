"""Why a guest is in its state, as libvirt numbers it. [libvirt-domain.h vir*Reason]

What happened to guests is known since the daemon began; before that it is 0, unknown.
"""

from __future__ import annotations

from collections.abc import Mapping

from xendpy.control.events import Event, EventKind
from xendpy.guest.domain import DomainState, DomainSummary

RUNNING, PAUSED, SHUTOFF = 1, 3, 5  # virDomainState
MAX_GUESTS = 4096  # whose last event is remembered; those of long ago are forgotten first
UNKNOWN = 0
PAUSED_USER, PAUSED_MIGRATION = 1, 2

_REASONS: Mapping[tuple[int, EventKind, str], int] = {
    (RUNNING, EventKind.STARTED, "booted"): 1,
    (RUNNING, EventKind.STARTED, "migrated"): 2,
    (RUNNING, EventKind.STARTED, "restored"): 3,
    (RUNNING, EventKind.UNPAUSED, ""): 5,
    (SHUTOFF, EventKind.STOPPED, "shutdown"): 1,
    (SHUTOFF, EventKind.STOPPED, "destroyed"): 2,
    (SHUTOFF, EventKind.STOPPED, "crashed"): 3,
    (SHUTOFF, EventKind.MIGRATED, ""): 4,
    (SHUTOFF, EventKind.STOPPED, "saved"): 5,
}


class Reasons:
    """The last event of each guest; used in the loop's thread."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[EventKind, str]] = {}

    def note(self, event: Event) -> None:
        """Remember what happened to a guest."""
        if event.kind in (EventKind.DEFINED, EventKind.UNDEFINED, EventKind.SUSPENDED):
            return
        detail = "" if event.kind is EventKind.MIGRATED else event.detail
        self._last.pop(event.uuid, None)
        self._last[event.uuid] = (event.kind, detail)
        if len(self._last) > MAX_GUESTS:
            del self._last[next(iter(self._last))]

    def of(self, guest: DomainSummary, state: int, *, moves: bool) -> int:
        """Return the reason of a guest's `state`; `moves`: a migration has it."""
        if state == PAUSED:
            if moves or guest.state in (DomainState.INCOMING, DomainState.SUSPENDED):
                return PAUSED_MIGRATION
            return UNKNOWN if guest.at_rest else PAUSED_USER
        if guest.domid == 0:
            return _REASONS[RUNNING, EventKind.STARTED, "booted"]
        return _REASONS.get((state, *self._last.get(guest.uuid, (EventKind.DEFINED, ""))), UNKNOWN)
