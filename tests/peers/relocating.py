"""What old senders put on the wire, and what the relocation port answers, as tests write it."""

from __future__ import annotations

import asyncio
import socket

from tests.peers.relocation_host import Host, read_all
from tests.peers.xend import Report, Sender
from tests.streams import config, entries, envelope, pv_image

READY = b"(ready receive)\n"
HELP = b"(ok (help quit receive))\n"
XEND_ERROR = b"(type \"<class 'xen.xend.XendError.XendError'>\")"


def err(text: bytes) -> bytes:
    return b"(err " + XEND_ERROR + b" (value '" + text + b"'))\n"


def parse_err(text: bytes) -> bytes:
    return b"(err (type \"<class 'xen.xend.sxp.ParseError'>\") (value '" + text + b"'))\n"


def half_closing(host: Host, wire: bytes, operation: bytes = b"receive") -> bytes:
    with host.connect() as sock:
        sock.sendall(operation + b"\n")
        answer = sock.recv(80)
        sock.sendall(wire)
        sock.shutdown(socket.SHUT_WR)
        return answer + read_all(sock)


async def sent(host: Host, wire: bytes, release: str = "4.4", cut: int | None = None) -> Report:
    sender = Sender(host.address, release)
    return await asyncio.to_thread(sender.migrate, wire, cut=cut)


def pv_guest(release: str = "4.4", pages: int = 64) -> bytes:
    image = pv_image(
        [entries(range(pages)), entries(range(5, 9)), entries([3])],
        release=release,
        p2m_size=pages,
    )
    return envelope(config()) + image.wire
