"""The calls on a peer's socket that differ over TLS; deadlines and errors are the channel's."""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections.abc import Sequence
from typing import Protocol

TLS_RECORD = 1 << 14  # bytes that one TLS record carries at most
TLS_STAGING = 1 << 16
TIMEVAL = struct.Struct("@ll")  # seconds, microseconds; zero would be for ever


class Transport(Protocol):
    """A blocking socket's calls; each raises OSError as the socket does. The caller owns it."""

    def bound(self, timeout_s: float) -> None:
        """Set how long each later call may block, > 0."""

    def readable(self) -> bool:
        """Whether a read would find something at once: bytes, the peer's end, or an error."""

    def recv(self, views: Sequence[memoryview], *, whole: bool) -> int:
        """Fill `views` from their start, if `whole` as far as goes; 0 = the peer's end."""

    def send(self, views: Sequence[memoryview]) -> int:
        """Send the beginning of `views`, none of them empty; return how much."""


class PlainTransport:
    """A TCP or unix socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._bound_s: float | None = None

    def bound(self, timeout_s: float) -> None:
        """As `Transport.bound`.

        The kernel keeps the time, so that one call can wait for a whole batch: with Python's own
        timeouts each piece of it costs a poll and a wake-up, a third of all the time.
        """
        if timeout_s == self._bound_s:
            return
        self._sock.settimeout(None)
        timeval = TIMEVAL.pack(int(timeout_s), int(timeout_s % 1 * 1e6))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        self._bound_s = timeout_s

    def readable(self) -> bool:
        """As `Transport.readable`."""
        poll = select.poll()  # select() cannot name descriptors from 1024 on
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    def recv(self, views: Sequence[memoryview], *, whole: bool) -> int:
        """As `Transport.recv`."""
        flags = socket.MSG_WAITALL if whole else 0
        if len(views) > 1:
            return self._sock.recvmsg_into(views, 0, flags)[0]
        return self._sock.recv_into(views[0], 0, flags)

    def send(self, views: Sequence[memoryview]) -> int:
        """As `Transport.send`."""
        return self._sock.sendmsg(views)


class TlsTransport:
    """An SSLSocket, which has neither recvmsg_into nor sendmsg."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._staging = bytearray(TLS_STAGING)
        self._ahead = b""  # read by `readable`, for the next `recv`

    def bound(self, timeout_s: float) -> None:
        """As `Transport.bound`."""
        self._sock.settimeout(timeout_s)

    def readable(self) -> bool:
        """As `Transport.readable`.

        The socket's own readiness says nothing: decrypted bytes may be pending, and what came
        may be no payload. A byte read to find out is read again later.
        """
        if self._ahead:
            return True
        try:
            self._sock.settimeout(0)
            self._ahead = self._sock.recv(1)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            pass  # the read to come finds it again
        return True

    def recv(self, views: Sequence[memoryview], *, whole: bool) -> int:
        """As `Transport.recv`, of the first view alone."""
        view, done = views[0], len(self._ahead)
        if done:
            view[:done], self._ahead = self._ahead, b""
        else:
            done = self._sock.recv_into(view)
        # A read gives one TLS record at most. Each is so short that a caller's loop for it would
        # take as long as deciphering half of it.
        while whole and 0 < done < len(view):
            count = self._sock.recv_into(view[done:])
            if not count:
                break
            done += count
        return done

    def send(self, views: Sequence[memoryview]) -> int:
        """As `Transport.send`."""
        return self._sock.send(self._gather(views) if len(views[0]) < TLS_RECORD else views[0])

    def _gather(self, views: Sequence[memoryview]) -> memoryview:
        """Copy small pieces together: each send is a record of its own."""
        staging, end = memoryview(self._staging), 0
        for view in views:
            if (view.nbytes >= TLS_RECORD and end >= TLS_RECORD) or end == len(staging):
                break
            count = min(view.nbytes, len(staging) - end)
            staging[end : end + count] = view[:count]
            end += count
        return staging[:end]
