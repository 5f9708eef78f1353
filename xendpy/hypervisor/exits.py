"""Tells when processes end, by their file descriptors, from one thread."""

from __future__ import annotations

import logging
import os
import selectors
from collections.abc import Callable
from threading import Lock, Thread

log = logging.getLogger(__name__)


class ExitWatch:
    """Watches processes from `start` on until `close`, each called by a number. Any thread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._fds: dict[int, int] = {}
        self._lock = Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ, -1)
        self._thread: Thread | None = None

    def start(self, ended: Callable[[int], None]) -> None:
        """Call `ended` in the watching thread, once for each process, also for one gone before."""
        self._thread = Thread(target=self._run, args=(ended,), name="exits")
        self._thread.start()

    def add(self, number: int, fd: int) -> None:
        """Watch the process of the pidfd `fd`, of which a copy is kept."""
        with self._lock:
            self._forget(number)
            self._fds[number] = copy = os.dup(fd)
            self._selector.register(copy, selectors.EVENT_READ, number)

    def forget(self, number: int) -> None:
        """Watch a process no more; its end, if it is being told, may still be told."""
        with self._lock:
            self._forget(number)

    def close(self) -> None:
        """End the thread. May be called again."""
        if self._wake < 0:
            return
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for number in list(self._fds):
                self._forget(number)
        self._selector.close()
        os.close(self._wake)
        self._wake = -1

    def _forget(self, number: int) -> None:
        fd = self._fds.pop(number, -1)
        if fd >= 0:
            self._selector.unregister(fd)
            os.close(fd)

    def _run(self, ended: Callable[[int], None]) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data < 0:
                    return
                self.forget(key.data)
                ended(key.data)
