"""The audit trail: one line for every peer let in or refused and every guest that moved.

Logger `xendpy.audit`, at level INFO whatever the log's own level; `key=value`, values quoted
where they hold anything but plain characters, so that no peer can forge a line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from enum import StrEnum

log = logging.getLogger("xendpy.audit")
log.setLevel(logging.INFO)

_PLAIN = re.compile(r"[A-Za-z0-9._:/@+*^$\\-]+")


class Refusal(StrEnum):
    """Why a peer was sent away; the metric's label."""

    HOSTS_ALLOW = "hosts-allow"
    CONNECTIONS = "connections"
    INCOMING = "incoming"
    TLS = "tls"
    TIMEOUT = "timeout"


class Audit:
    """Writes the lines; `on_refused` hears of each refusal as well. Any thread."""

    def __init__(self, on_refused: Callable[[Refusal], None] = lambda _: None) -> None:
        self._on_refused = on_refused

    def admitted(self, peer: str, *, rule: str, name: str = "", tls: str = "") -> None:
        """Note who was let in, and by which rule."""
        write("admitted", peer=peer, name=name, tls=tls, rule=rule or "everybody")

    def refused(self, peer: str, kind: Refusal, reason: str, *, name: str = "") -> None:
        """Note who was sent away, and why."""
        self._on_refused(kind)
        write("refused", peer=peer, name=name, by=str(kind), reason=reason)


def write(event: str, **fields: object) -> None:
    """Write one line; empty values are left out."""
    pairs = [f"{key}={_shown(str(value))}" for key, value in fields.items() if str(value)]
    log.info("%s", " ".join([f"event={event}", *pairs]))


def _shown(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
