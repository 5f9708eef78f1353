"""Plays the sender of each old xend release, and says what its user would have seen.

Sources: XendDomain.py domain_migrate and XendCheckpoint.py save, Xen 3.0.3 - 4.4.4; what a real
4.4.4 did with peers that close, refuse in mid-stream or stay silent. What they have in common:
`receive`, one recv(80) whose content nobody looks at, the payload, and success as soon as the
last byte is with the kernel.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from xendpy.relocation.server import RelocationServer

# XendDomain.py >= 4.0, in other words: the value must stand in single quotes.
ERROR_TEXT = re.compile(r"^\(err\s+\(type\s+(.+)\)\s+\(value\s+'(.+)'\)\)")
PIECE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Release:
    """How one release ends. `reads_error`: it looks for a text after its own save failed."""

    name: str
    reads_error: bool
    shuts_down: bool  # shutdown(2) before close
    closes_before_destroy: bool


RELEASES = {
    release.name: release
    for release in (
        Release(name="3.0", reads_error=False, shuts_down=False, closes_before_destroy=False),
        Release(name="3.1", reads_error=False, shuts_down=False, closes_before_destroy=False),
        Release(name="3.4", reads_error=False, shuts_down=False, closes_before_destroy=False),
        Release(name="4.0", reads_error=True, shuts_down=True, closes_before_destroy=False),
        Release(name="4.1", reads_error=True, shuts_down=True, closes_before_destroy=True),
        Release(name="4.4", reads_error=True, shuts_down=True, closes_before_destroy=True),
    )
}


@dataclass(kw_only=True)
class Report:
    """What came of it at the source."""

    reply: bytes = b""
    sent: int = 0
    succeeded: bool = False
    guest_lives: bool = True
    shown: str = ""  # the error `xm migrate` prints
    steps: list[str] = field(default_factory=list)


class Sender:
    """One migration out of an old xend; blocking.

    `before_end` is called when the payload is with the kernel, before the guest is destroyed or
    the connection closed: the time a real xend spends taking the guest down. `buffer_bytes`: what
    the kernel may hold of it, so that a small guest is not sent before anybody has looked at it.
    """

    def __init__(
        self,
        address: tuple[str, int],
        release: str = "4.4",
        *,
        before_end: Callable[[], None] = lambda: None,
        timeout_s: float = 120.0,
        buffer_bytes: int = 0,
    ) -> None:
        self._address = address
        self._release = RELEASES[release]
        self._before_end = before_end
        self._timeout_s = timeout_s
        self._buffer_bytes = buffer_bytes

    def migrate(self, payload: bytes, *, cut: int | None = None) -> Report:
        """Send `payload`; `cut` = the connection ends after so many bytes of it."""
        report = Report()
        with socket.create_connection(self._address, timeout=self._timeout_s) as sock:
            if self._buffer_bytes:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_bytes)
            sock.send(b"receive\n")
            try:
                report.reply = sock.recv(80)
            except TimeoutError:
                report.shown = "can't connect: timed out"
                return report
            except OSError as error:
                report.shown = str(error)
                return report
            self._save(sock, payload if cut is None else payload[:cut], report)
        return report

    def _save(self, sock: socket.socket, payload: bytes, report: Report) -> None:
        view = memoryview(payload)
        try:
            while report.sent < len(payload):
                report.sent += sock.send(view[report.sent : report.sent + PIECE])
        except OSError as error:
            report.shown = self._error_text(sock) or f"[Errno {error.errno}] {error.strerror}"
            report.steps.append("resumed")
            return
        report.succeeded = True
        self._before_end()
        ending = [lambda: self._close(sock, report), lambda: self._destroy(report)]
        for step in ending if self._release.closes_before_destroy else reversed(ending):
            step()

    def _close(self, sock: socket.socket, report: Report) -> None:
        if self._release.shuts_down:
            with suppress(OSError):  # xend ignores it as well
                sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        report.steps.append("closed")

    def _destroy(self, report: Report) -> None:
        report.guest_lives = False
        report.steps.append("destroyed")

    def _error_text(self, sock: socket.socket) -> str:
        if not self._release.reads_error:
            return ""
        sock.settimeout(3)
        try:
            match = ERROR_TEXT.match(sock.recv(1024).decode("latin-1"))
        except OSError:
            return ""
        return f"{match[2]} (from {self._address[0]})" if match else ""


def bound_buffers(server: RelocationServer, size: int) -> None:
    """Let the kernel hold little of what peers send: a small guest is then like a large one."""
    for listener in server._listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


class Background:
    """Runs a call in a thread; `result` waits for it."""

    def __init__(self, call: Callable[[], Report]) -> None:
        self._report: Report | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._report = self._call()

    def result(self, timeout_s: float = 120.0) -> Report:
        """Return what the call returned; fail if it has not within `timeout_s`."""
        self._thread.join(timeout_s)
        assert self._report is not None, "the sender has not come to an end"
        return self._report
