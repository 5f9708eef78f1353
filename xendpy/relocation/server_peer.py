"""One peer of the relocation port before it has a worker: is it let in, and what does it want.

The hosts-allow rules and their meaning are xend's (connection.py hostAllowed, 3.0.4 - 4.4); only
the name look-up has a deadline, and an address that a rule matches needs none.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass

from xendpy.errors import PeerRefused
from xendpy.relocation.admission import Names
from xendpy.relocation.audit import Refusal
from xendpy.relocation.channel import ACK_POLL_S, unacknowledged
from xendpy.relocation.from_xend import ACKNOWLEDGED_S
from xendpy.relocation.handshake import Close, Handshake, Receive, Reply, refusal
from xendpy.relocation.operation import Incoming, Operations
from xendpy.relocation.settings import RelocationSettings
from xendpy.relocation.tls import TlsServer

log = logging.getLogger(__name__)

HANDSHAKE = 22  # a TLS record's type [RFC 8446 5.1]
SSL2 = 0x80  # set in the first byte of SSL 2's hello, in which OpenSSL < 1.1 may offer TLS 1.0
CONTROL_PIECE = 16384  # bytes; connection.py BUFFER_SIZE >= 4.0


@dataclass(slots=True, eq=False)
class Peer:
    """One connection; `address` is '' on the local socket.

    `tls`: what its handshake is to be like, None on the other listeners.
    """

    sock: socket.socket
    address: str
    label: str
    tls: TlsServer | None = None
    incoming: Incoming | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """What hosts-allow says of a peer whose look-up gave `name`."""

    allowed: bool
    rule: str
    name: str = ""


async def admit(peer: Peer, settings: RelocationSettings, names: Names) -> Admission:
    """Return whether hosts-allow lets the peer in by its address or name."""
    if not peer.address:
        return Admission(True, "the local socket")
    hosts = settings.hosts_allow
    rule = hosts.match_address(peer.address)
    if rule is not None:
        return Admission(True, rule)
    name = await _name_of(peer, names, settings.dns_timeout_s)
    verdict = hosts.decide(peer.address, name)
    return Admission(verdict.allowed, verdict.rule, name)


async def _name_of(peer: Peer, names: Names, timeout_s: float) -> str:
    """Return the peer's name, its address if it has none or nobody says in time."""
    wanted = asyncio.wrap_future(names.look_up(peer.address))
    try:
        # Shielded: other connections from there may wait for the same answer.
        return await asyncio.wait_for(asyncio.shield(wanted), timeout_s)
    except TimeoutError:
        log.warning("no name for %s within %g s", peer.address, timeout_s)
    except (OSError, UnicodeError) as error:
        log.debug("no name for %s: %s", peer.address, error)
    return peer.address


async def converse(peer: Peer, operations: Operations, timeout_s: float) -> Receive | None:
    """Answer the peer's lines until it asks for an operation; None if it goes instead.

    Raises:
        TimeoutError: it did neither within `timeout_s` in all.
    """
    loop = asyncio.get_running_loop()
    handshake = Handshake(ops=tuple(operations))
    async with asyncio.timeout(timeout_s):
        while data := await loop.sock_recv(peer.sock, CONTROL_PIECE):
            actions = handshake.feed(data)
            # Together: a flood of bad requests costs one write for each piece that comes.
            replies = b"".join(action.data for action in actions if isinstance(action, Reply))
            if replies:
                await loop.sock_sendall(peer.sock, replies)
            match actions[-1] if actions else None:
                case Close():
                    return None
                case Receive() as request:
                    return request
    return None


async def greeted(sock: socket.socket, timeout_s: float) -> bool:
    """Wait for the first byte of a TLS handshake, and leave it there; False = the peer has gone.

    What is none is told here from one that may be: a flood of it needs no threads.

    Raises:
        PeerRefused: what it says is no handshake.
        TimeoutError: it says nothing within `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(sock, came.set)
    try:
        async with asyncio.timeout(timeout_s):
            await came.wait()
    finally:
        loop.remove_reader(sock)
    first = sock.recv(1, socket.MSG_PEEK)
    if first and first[0] != HANDSHAKE and not first[0] & SSL2:
        raise PeerRefused("TLS: it speaks no TLS", rule=Refusal.TLS)
    return bool(first)


async def refuse(peer: Peer, text: str) -> None:
    """Say why, and wait until the peer's kernel has it; the caller closes without reading on.

    Raises:
        TimeoutError: it has not within three seconds.
    """
    log.warning("refused %s: %s", peer.label, text)
    await asyncio.get_running_loop().sock_sendall(peer.sock, refusal(text))
    async with asyncio.timeout(ACKNOWLEDGED_S):
        while unacknowledged(peer.sock):
            await asyncio.sleep(ACK_POLL_S)  # the kernel tells nobody; see wait_acknowledged
