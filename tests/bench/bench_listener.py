"""How soon the relocation port answers `help`, idle and while others do their worst.

    python -m tests.bench.bench_listener

Each row is 60 questions, each on a connection of its own. Daemon, attackers and who asks are
three processes.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TypeAlias

QUESTIONS = 60
PORT_WAIT_S = 30.0
DEADLINE_S = 60.0


# Attacks a port, in a process of its own; says when it has begun, and ends when it is told to.
Attack: TypeAlias = Callable[[int, Event, Event], None]


def main() -> None:
    print(
        f"{os.cpu_count()} cpus, Python {platform.python_version()}, {QUESTIONS} x connect + help;"
        " milliseconds"
    )
    print(f"{'while':<34} {'min':>8} {'median':>8} {'p99':>8} {'max':>8}")
    for name, attack in ATTACKS.items():
        with tempfile.TemporaryDirectory() as root:
            _row(name, attack, Path(root))


def _row(name: str, attack: Attack, root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    server = context.Process(target=_serve, args=(str(root), far), daemon=True)
    server.start()
    port = near.recv() if near.poll(PORT_WAIT_S) else sys.exit("the host does not start")
    stop, begun = context.Event(), context.Event()
    attacker = context.Process(target=attack, args=(port, begun, stop), daemon=True)
    attacker.start()
    if not begun.wait(PORT_WAIT_S):
        sys.exit("the attack does not begin")
    try:
        times_ms = sorted(_ask(port) * 1000 for _ in range(QUESTIONS))
    finally:
        stop.set()
        attacker.join()
        near.send(None)
        server.join()
    print(
        f"{name:<34} {times_ms[0]:8.2f} {statistics.median(times_ms):8.2f}"
        f" {times_ms[len(times_ms) * 99 // 100]:8.2f} {times_ms[-1]:8.2f}"
    )


def _serve(root: str, pipe: object) -> None:
    import asyncio

    import uvloop

    from tests.peers.relocation_host import receiving
    from xendpy.control import logs

    logs.set_up(Path(root) / "xend.log", "INFO", environ={})  # a flood costs its lines as well

    async def run() -> None:
        settings = {"max_connections": 1024, "max_connections_per_peer": 64, "max_incoming": 8}
        async with receiving(Path(root), **settings) as host:
            pipe.send(host.server.port)  # type: ignore[attr-defined]  # a Connection
            await asyncio.to_thread(pipe.recv)  # type: ignore[attr-defined]  # a Connection

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def _ask(port: int) -> float:
    began_s = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as sock:
        sock.sendall(b"help\n")
        assert sock.recv(100).startswith(b"(ok (help")
    return time.perf_counter() - began_s


def _attack(port: int, number: int = 0) -> socket.socket:
    """Connect as one of many peers: as many connections as one may have come from one address."""
    address = f"127.0.0.{3 + number // 64}"
    return socket.create_connection(("127.0.0.1", port), DEADLINE_S, (address, 0))


def _idle(port: int, begun: Event, stop: Event) -> None:
    begun.set()
    stop.wait()


def _slow_loris(port: int, begun: Event, stop: Event) -> None:
    socks = [_attack(port, number) for number in range(500)]
    begun.set()
    while not stop.wait(0.05):
        for sock in socks:
            with suppress(OSError):
                sock.send(b" ")
    for sock in socks:
        sock.close()


def _flood(port: int, begun: Event, stop: Event) -> None:
    begun.set()
    while not stop.is_set():
        with suppress(OSError), _attack(port) as sock:
            sock.send(b"x\n" * 50)


def _stalled(port: int, begun: Event, stop: Event) -> None:
    socks = [_attack(port) for _ in range(8)]
    for sock in socks:
        sock.sendall(b"receive\nLinuxGuestRecord")
    begun.set()
    stop.wait()
    for sock in socks:
        sock.close()


ATTACKS = {
    "idle": _idle,
    "500 connections trickle blanks": _slow_loris,
    "one peer connects and errs": _flood,
    "8 migrations stall in their config": _stalled,
}

if __name__ == "__main__":
    main()
