"""Events about guests as libvirt numbers them. [libvirt-domain.h virDomainEventType]"""

from __future__ import annotations

from collections.abc import Mapping

from xendpy.control.events import Event, EventKind
from xendpy.control.libvirt.xdr import Writer

EVENT_LIFECYCLE = 318  # the procedure that carries one

_NUMBERS: Mapping[EventKind, int] = {
    EventKind.DEFINED: 0,
    EventKind.UNDEFINED: 1,
    EventKind.STARTED: 2,
    EventKind.PAUSED: 3,
    EventKind.UNPAUSED: 4,
    EventKind.STOPPED: 5,
    EventKind.MIGRATED: 5,
}
_DETAILS: Mapping[tuple[int, str], int] = {
    (2, "booted"): 0,
    (2, "migrated"): 1,
    (2, "restored"): 2,
    (5, "shutdown"): 0,
    (5, "destroyed"): 1,
    (5, "crashed"): 2,
    (5, "migrated"): 3,
    (5, "saved"): 4,
}


def lifecycle_body(callback: int, event: Event) -> bytes | None:
    """Return the body of a lifecycle message; None for what libvirt has no event for.

    SUSPENDED and RESUMED of a managed domain are told by the STOPPED and STARTED beside them.
    """
    number = _NUMBERS.get(event.kind)
    if number is None:
        return None
    detail = "migrated" if event.kind is EventKind.MIGRATED else event.detail
    writer = Writer().i32(callback).domain(event.name, event.uuid, event.domid)
    return writer.i32(number, _DETAILS.get((number, detail), 0)).data()
