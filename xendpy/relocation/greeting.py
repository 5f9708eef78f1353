"""A peer of the TLS port before it has a migration: its handshake, its name, its control line.

Runs in a worker thread; the event loop only waits for the first byte. All of it has one deadline.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from xendpy.errors import ChannelError, ChannelTimeout, PeerRefused
from xendpy.relocation import incoming, resolve, stripes
from xendpy.relocation.audit import Refusal
from xendpy.relocation.channel import Channel
from xendpy.relocation.from_xend import refuse
from xendpy.relocation.handshake import Close, Handshake, Receive, Reply
from xendpy.relocation.hosts import HostsAllow
from xendpy.relocation.tls import Identity, shake_hands

PIECE = 16384  # bytes; connection.py BUFFER_SIZE >= 4.0
XENDPY = (
    incoming.OPERATION,
    stripes.OPERATION,
    resolve.OPERATION,
)  # from hosts that have certificates


class Admitted(Protocol):
    """What hosts-allow said of the peer by address and reverse look-up."""

    @property
    def allowed(self) -> bool: ...

    @property
    def rule(self) -> str: ...

    @property
    def name(self) -> str: ...


def turned_away(name: str, hosts_allow: HostsAllow) -> PeerRefused:
    """Return what is said of a peer called `name` that no pattern lets in."""
    text = f"it matches none of {' '.join(hosts_allow.patterns)}"
    return PeerRefused(text, peer=name, rule=Refusal.HOSTS_ALLOW)


@dataclass(slots=True, kw_only=True)
class Greeting:
    """One peer over TLS; `run` in a worker, `abort` from any thread.

    `until_s` on the monotonic clock. `verifies`: a certificate shown was held against the CA.
    `admitted(name, rule)` is called, in the worker, when the peer is let in.
    """

    sock: ssl.SSLSocket
    peer: str
    ops: tuple[str, ...]
    until_s: float
    verifies: bool
    admission: Admitted
    hosts_allow: HostsAllow
    admitted: Callable[[str, str], None]
    _channel: Channel = field(init=False)

    def __post_init__(self) -> None:
        self._channel = Channel(self.sock, peer=self.peer)

    def abort(self) -> None:
        """Cut the connection. Any thread."""
        self._channel.abort()

    def run(self) -> Receive | None:
        """Return what the peer asks for; None if it goes instead.

        Raises:
            PeerRefused: TLS or hosts-allow say no, or it asks for what needs a certificate.
            ChannelTimeout: it took too long.
            ChannelError: the connection broke.
        """
        identity = self._shake_hands()
        self._admit(identity)
        with self._channel.within(self._left_s()):
            request = self._converse()
        if request is not None and request.op in XENDPY and self.verifies:
            self._require_certificate(identity, request.op)
        return request

    def _left_s(self) -> float:
        return max(self.until_s - time.monotonic(), 0.001)

    def _shake_hands(self) -> Identity:
        try:
            return shake_hands(self.sock, self._left_s(), self.peer)
        except ChannelTimeout:
            raise
        except ChannelError as error:
            raise PeerRefused(error.reason, rule=Refusal.TLS) from error

    def _admit(self, identity: Identity) -> None:
        if self.admission.allowed:
            names = " ".join(identity.names) or self.admission.name
            self.admitted(names, self.admission.rule)
            return
        rule = self.hosts_allow.match_names(identity.names)
        if rule is None:
            raise turned_away(" ".join(identity.names) or self.admission.name, self.hosts_allow)
        self.admitted(" ".join(identity.names), rule)

    def _converse(self) -> Receive | None:
        handshake = Handshake(ops=self.ops)
        piece = memoryview(bytearray(PIECE))
        while count := self._channel.recv_some(piece):
            for action in handshake.feed(bytes(piece[:count])):
                match action:
                    case Reply():
                        self._channel.send([action.data])
                    case Close():
                        return None
                    case Receive():
                        return action
        return None

    def _require_certificate(self, identity: Identity, op: str) -> None:
        """Hold back what only verified hosts may ask for, and say so."""
        if identity.verified and identity.version == "TLSv1.3":
            return
        text = f"{op} over TLS needs TLS 1.3 and a certificate that this host can verify"
        refuse(self._channel, text)
        raise PeerRefused(text, peer=" ".join(identity.names), rule=Refusal.TLS)
