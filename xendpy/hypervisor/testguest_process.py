"""The process that is a test guest: `python -m xendpy.hypervisor.testguest_process --ram FD ...`.

It holds its memory, its dirty map and a blob that the daemon keeps with it, each a memfd, and
listens on a unix socket (SOCK_SEQPACKET) that outlives the daemon. A message is a JSON object
`{"do": COMMAND}`; the answer is `{"state": ...}`, or `{"error": TEXT}`.

    attach     the answer carries the three file descriptors, in that order
    start      go on from the memory, which has arrived (only with --waiting)
    keep       the message carries a file descriptor, which replaces the blob
    pause, unpause, suspend, resume
    check      the answer's "faults" lists what is wrong with the memory
    end        go

Between two steps of at most some milliseconds it looks for commands, so that it is stopped, and
its memory coherent, as soon as a command is answered. Imports little, so that it stays small.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xendpy.hypervisor import testguest_layout as layout
from xendpy.hypervisor.testguest_ticker import Ticker

RUNNING, PAUSED, SUSPENDED, WAITING = "running", "paused", "suspended", "waiting"
MAX_MESSAGE = 16384  # bytes

Answer = dict[str, Any]


class GuestProcess:
    """The loop of one guest: paused at first, or waiting for memory to go on from.

    One that still waits when its daemon goes, goes too: half a guest is of no use.
    """

    def __init__(
        self, listener: socket.socket, fds: Sequence[int], ticker: Ticker | None, host_name: str
    ) -> None:
        self._fds = list(fds)
        self._guest = ticker
        self._host_name = host_name
        self._state = WAITING if ticker is None else PAUSED
        self._before_suspend = PAUSED
        self._ended = False
        self._received: list[int] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._commands: dict[str, Callable[[Answer], Answer]] = {
            "attach": lambda _: {},
            "start": self._start,
            "keep": self._keep,
            "pause": lambda _: self._change({RUNNING, PAUSED}, PAUSED),
            "unpause": lambda _: self._change({RUNNING, PAUSED}, RUNNING),
            "suspend": self._suspend,
            "resume": lambda _: self._change({SUSPENDED}, self._before_suspend),
            "check": lambda _: {"faults": self._ticker.check()},
            "end": self._end,
        }

    @property
    def _ticker(self) -> Ticker:
        if self._guest is None:
            raise ValueError("the guest's memory has not arrived")
        return self._guest

    def run(self) -> None:
        """Live until told to end."""
        before = time.monotonic()
        wait_s = 0.0
        while not self._ended:
            running = self._state == RUNNING
            for key, _ in self._selector.select(wait_s if running else None):
                key.data(key.fileobj)
            now = time.monotonic()
            # The time in which it ran counts up to the command that stopped it, not beyond: a
            # stopped guest writes nothing, its own clock not excepted.
            if running and self._state == RUNNING:
                wait_s = self._ticker.advance(now - before)
            elif not running:
                wait_s = 0.0
            before = now

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, self._serve)

    def _serve(self, connection: socket.socket) -> None:
        """Answer one message. A daemon that is gone, or does not read, loses its connection."""
        try:
            message, self._received, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 1)
            if not message:
                raise ConnectionResetError
            answer = self._answer(message)
            fds = self._fds if answer.get("done") == "attach" else []
            socket.send_fds(connection, [json.dumps(answer).encode()], fds)
        except OSError:
            self._selector.unregister(connection)
            connection.close()
            self._ended = self._ended or self._state == WAITING
        finally:
            for fd in self._received:
                os.close(fd)
            self._received = []

    def _answer(self, message: bytes) -> Answer:
        try:
            request = json.loads(message)
            command = request["do"]
            answer = self._commands[command](request)
        except (ValueError, KeyError, TypeError) as error:
            return {"error": str(error) or type(error).__name__, "state": self._state}
        return {"done": command, "state": self._state, "pid": os.getpid(), **answer}

    def _change(self, allowed: set[str], state: str) -> Answer:
        if self._state not in allowed:
            raise ValueError(f"the guest is {self._state}")
        self._state = state
        return {}

    def _start(self, _: Answer) -> Answer:
        if self._state != WAITING:
            raise ValueError(f"the guest is {self._state}")
        self._guest = _go_on(self._fds[0], self._fds[1], self._host_name)
        self._state = PAUSED
        return {}

    def _suspend(self, _: Answer) -> Answer:
        if self._state != SUSPENDED:
            before = self._state
            self._change({RUNNING, PAUSED}, SUSPENDED)
            self._before_suspend = before
        return {}

    def _keep(self, _: Answer) -> Answer:
        if not self._received:
            raise ValueError("no file descriptor came")
        self._fds[2], self._received = _swap(self._fds[2], self._received)
        return {}

    def _end(self, _: Answer) -> Answer:
        self._ended = True
        return {}


def _swap(old: int, received: list[int]) -> tuple[int, list[int]]:
    """Return the fd to hold from here on, and those to close."""
    return received[0], [old, *received[1:]]


def _map(fd: int) -> mmap.mmap:
    return mmap.mmap(fd, os.fstat(fd).st_size)


def _boot(
    ram_fd: int, dirty_fd: int, vcpus: int, options: layout.TickerOptions, host_name: str
) -> Ticker:
    """Lay a new guest out in empty memory."""
    layout.build(layout.view_ram(memoryview(_map(ram_fd))), vcpus=vcpus, options=options)
    ticker = _go_on(ram_fd, dirty_fd, host_name)
    if options.fill:
        ticker.fill()
    return ticker


def _go_on(ram_fd: int, dirty_fd: int, host_name: str) -> Ticker:
    """Go on from the memory as it is."""
    ram = layout.view_ram(memoryview(_map(ram_fd)))
    return Ticker(ram, np.frombuffer(_map(dirty_fd), np.uint8), host_name=host_name)


def main(argv: Sequence[str]) -> None:
    """Become the guest; returns when it has ended."""
    parser = argparse.ArgumentParser()
    for name in ("listener", "ram", "dirty", "kept"):
        parser.add_argument(f"--{name}", type=int, required=True, help="file descriptor")
    parser.add_argument("--host-name", required=True)
    parser.add_argument("--waiting", action="store_true", help="the memory is still to arrive")
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--extra", default="")
    arguments = parser.parse_args(argv)
    # Nobody's child: it is neither reaped by the daemon nor in its session.
    if os.fork():
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    fds = (arguments.ram, arguments.dirty, arguments.kept)
    ticker = None
    if not arguments.waiting:
        options = layout.TickerOptions.parse(arguments.extra)
        ticker = _boot(fds[0], fds[1], arguments.vcpus, options, arguments.host_name)
    with socket.socket(fileno=arguments.listener) as listener:
        GuestProcess(listener, fds, ticker, arguments.host_name).run()


if __name__ == "__main__":
    main(sys.argv[1:])
