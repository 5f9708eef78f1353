"""Dial a relocation port and find out who answers.

Sources: XendDomain.py domain_migrate (3.0.2 - 4.4): `receive\\n`, then up to 80 bytes of reply. A
sender of ours reads that reply, which no xend ever did. Runs in a worker thread.
"""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import ExitStack
from dataclasses import dataclass

from xendpy.errors import ChannelError, HandshakeError, TlsTooOld
from xendpy.relocation.channel import Channel
from xendpy.relocation.handshake import Err, Ok, Ready, parse_reply
from xendpy.relocation.tls import check_name, shake_hands, wrap

CONNECT_TIMEOUT_S = 30.0  # xend >= 3.3
MAX_REPLY = 1024  # bytes; what xend 4.0 reads of an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Where to dial: `name` is what the user typed, `release` the xend dialect to speak.

    `tool_bits`: 32 or 64, how wide the tools of a xend are, and with them its stream's numbers.
    `tls`: over TLS, whose certificate must then be for `name` or `address`.
    """

    name: str
    address: str
    port: int
    release: str = "4.2+"
    tool_bits: int = 64
    tls: bool = False


def connect(
    peer: Peer,
    *,
    bind_address: str = "",
    stall_timeout_s: float = 60.0,
    tls: ssl.SSLContext | None = None,
) -> Channel:
    """Connect to `peer`, from `bind_address` if one is given, over TLS if there is a context.

    Raises:
        ChannelError: nobody answers there; the text is xend's `can't connect: ...`. Or it is not
            who it should be.
    """
    source = (bind_address, 0) if bind_address else None
    try:
        sock = socket.create_connection(
            (peer.address, peer.port), timeout=CONNECT_TIMEOUT_S, source_address=source
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise ChannelError(f"can't connect: {reason} ({peer.address}:{peer.port})") from error
    where = f"{peer.address}:{peer.port}"
    if tls is not None:
        sock = _secured(sock, tls, peer, where)
    return Channel(sock, peer=where, stall_timeout_s=stall_timeout_s)


def _secured(
    sock: socket.socket, context: ssl.SSLContext, peer: Peer, where: str
) -> ssl.SSLSocket:
    with ExitStack() as undo:
        undo.callback(sock.close)
        try:
            wrapped = wrap(sock, context, server_name=peer.name)
        except (OSError, ValueError) as error:
            raise ChannelError(f"TLS: {str(error).lower()}", peer=where) from error
        undo.callback(wrapped.close)
        try:
            identity = shake_hands(wrapped, CONNECT_TIMEOUT_S, where)
        except TlsTooOld as error:
            raise ChannelError(f"{error.reason}: {no_verdict(peer)}", peer=where) from error
        if context.verify_mode is not ssl.CERT_NONE:
            check_name(identity, (peer.name, peer.address), where)
        undo.pop_all()
        return wrapped


def no_verdict(peer: Peer) -> str:
    """Return why no guest is sent over TLS to a xend."""
    return (
        f"{peer.name} is no xendpy host: a xend that receives over TLS (sslreceive) cannot say"
        " whether the guest arrived, so nothing is sent; migrate without --ssl, through a tunnel"
        " if the network is not trusted"
    )


def ask(channel: Channel, line: bytes, *, timeout_s: float = CONNECT_TIMEOUT_S) -> Ready | Ok:
    """Send one control line and return the peer's answer.

    Raises:
        HandshakeError: it refused, closed, or said something else; the text says which.
    """
    channel.send([line])
    reply = channel.recv_line(MAX_REPLY, timeout_s=timeout_s)
    if not reply:
        raise HandshakeError(
            "the peer closed the connection without an answer: is this host in its "
            "xend-relocation-hosts-allow? Is that its TLS port (--ssl)?",
            peer=channel.peer,
        )
    answer = parse_reply(reply)
    if isinstance(answer, Err):
        raise HandshakeError(answer.text, peer=channel.peer, line=reply)
    return answer


def operations(channel: Channel) -> frozenset[str]:
    """Return the operations the peer lists in its answer to `help`."""
    answer = ask(channel, b"help\n")
    words = re.findall(r"[A-Za-z][A-Za-z0-9-]*", answer.text)
    return frozenset(words) - {"ok", "help"}
