"""The audit trail: one line for every peer let in or refused and every guest that moved.

Logger `xendpy.audit`, at level INFO whatever the log's own level; `key=value`, values quoted
where they hold anything but plain characters, so that no peer can forge a line. One address that
is refused over and over for the same reason has two lines a second: a flood is neither to push
everything else out of the log nor to keep the daemon busy writing it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from enum import StrEnum

log = logging.getLogger("xendpy.audit")
log.setLevel(logging.INFO)

REPEATS_S = 1.0  # how long further refusals are only counted

_PLAIN = re.compile(r"[A-Za-z0-9._:/@+*^$\\-]+")


class Refusal(StrEnum):
    """Why a peer was sent away; the metric's label."""

    HOSTS_ALLOW = "hosts-allow"
    CONNECTIONS = "connections"
    INCOMING = "incoming"
    TLS = "tls"
    TIMEOUT = "timeout"


class Audit:
    """Writes the lines; `on_refused` hears of each refusal as well."""

    def __init__(self, on_refused: Callable[[Refusal], None] = lambda _: None) -> None:
        self._on_refused = on_refused
        self._repeats: dict[tuple[str, Refusal], int] = {}

    def admitted(self, peer: str, *, rule: str, name: str = "", tls: str = "") -> None:
        """Note who was let in, and by which rule. Any thread."""
        write("admitted", peer=peer, name=name, tls=tls, rule=rule or "everybody")

    def refused(
        self, peer: str, kind: Refusal, reason: str, *, name: str = ""
    ) -> tuple[str, Refusal] | None:
        """Note who was sent away, and why. The event loop's thread only, as those below.

        Returns None if that was only counted, else what `repeated` wants after REPEATS_S.
        """
        self._on_refused(kind)
        key = peer.rpartition(":")[0] or peer, kind
        if key in self._repeats:
            self._repeats[key] += 1
            return None
        self._repeats[key] = 0
        write("refused", peer=peer, name=name, by=kind, reason=reason)
        return key

    def repeated(self, key: tuple[str, Refusal]) -> None:
        """Write how often the same was counted meanwhile, and count no longer."""
        address, kind = key
        if times := self._repeats.pop(key, 0):
            write("refused", peer=address, by=kind, times=times)

    def close(self) -> None:
        """Write all that was only counted."""
        for key in list(self._repeats):
            self.repeated(key)


def write(event: str, **fields: object) -> None:
    """Write one line; empty values are left out."""
    pairs = [f"{key}={_shown(str(value))}" for key, value in fields.items() if str(value)]
    log.info("%s", " ".join([f"event={event}", *pairs]))


def _shown(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
