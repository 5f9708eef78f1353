"""Ports for servers that are started a moment later."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack
from pathlib import Path

LOWEST = 10_000


def free_port(*addresses: str) -> int:
    """Return a port that is free on each of `addresses`, 127.0.0.1 without any.

    Of those that the kernel gives to nobody by itself: another test's outgoing connection would
    else take the port before its server has it.
    """
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    while True:
        port = LOWEST + secrets.randbelow(int(given[0]) - LOWEST)
        try:
            with ExitStack() as probes:
                for address in addresses or ("127.0.0.1",):
                    probes.enter_context(socket.create_server((address, port)))
                return port
        except OSError:
            continue


def free_udp_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody else has a UDP socket on, each another."""
    with ExitStack() as probes:
        socks = [probes.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in socks]
