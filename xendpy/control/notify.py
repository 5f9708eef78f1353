"""What systemd is told: ready, reloading, stopping, alive.

Spec: sd_notify(3). One datagram of `KEY=value` lines to the socket that NOTIFY_SOCKET names;
without the variable every call does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notifier:
    """The way to the service manager; `address` is None when there is none."""

    address: str | None = None
    watchdog_usec: int = 0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Notifier:
        """Return the notifier that the environment describes.

        A watchdog that names another process (WATCHDOG_PID) is not ours.
        """
        address = environ.get("NOTIFY_SOCKET") or None
        if address is not None and address[0] not in "/@":
            address = None  # vsock addresses need another family; xend never runs in such a place
        interval = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address, int(interval) if ours and interval.isdigit() else 0)

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often to call `alive`: half of what the manager waits, None without a watchdog."""
        return self.watchdog_usec / 2_000_000 if self.address and self.watchdog_usec else None

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def status(self, text: str) -> None:
        self._send(f"STATUS={_line(text)}")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for `seconds` more before the manager gives up on a start or a stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if self.address is None:
            return
        name = self.address
        target = "\0" + name[1:] if name[0] == "@" else name
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)  # a manager that does not read must not stop the daemon
            try:
                sock.sendto(text.encode(), target)
            except OSError:
                return  # a service manager that is gone is no reason to fail


def forget(environ: MutableMapping[str, str] = os.environ) -> None:
    """Take the variables away from children: only the daemon itself speaks to systemd."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        environ.pop(name, None)


def _line(text: str) -> str:
    return " ".join(text.split())
