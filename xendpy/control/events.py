"""What happened to guests, told to whoever asked for it (libvirt's clients do)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from xendpy.guest.domain import DomainSummary

log = logging.getLogger(__name__)


class EventKind(StrEnum):
    """What can happen to a guest."""

    DEFINED = "defined"
    UNDEFINED = "undefined"
    STARTED = "started"
    PAUSED = "paused"
    UNPAUSED = "unpaused"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    STOPPED = "stopped"
    MIGRATED = "migrated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened; `detail` says how: booted, restored, migrated, saved, destroyed."""

    kind: EventKind
    uuid: str
    name: str
    domid: int | None
    detail: str = ""


Callback = Callable[[Event], None]


class Events:
    """Subscribers, called in the loop's thread in the order they came; they must not block."""

    def __init__(self) -> None:
        self._callbacks: dict[object, Callback] = {}

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Have `callback` called for every event; return what ends that."""
        key = object()
        self._callbacks[key] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(key, None)

        return unsubscribe

    def emit(self, kind: EventKind, guest: DomainSummary, detail: str = "") -> None:
        """Tell everybody what happened to a guest."""
        self.tell(
            Event(kind=kind, uuid=guest.uuid, name=guest.name, domid=guest.domid, detail=detail)
        )

    def tell(self, event: Event) -> None:
        """Tell everybody of an event whose guest is not at hand as a summary."""
        log.debug("domain %s (%s) %s %s", event.name, event.uuid, event.kind.value, event.detail)
        for callback in list(self._callbacks.values()):
            callback(event)
