"""One peer's socket in its worker thread: blocking, with deadlines, never reading ahead.

Works over TCP, a unix socket and an `ssl.SSLSocket`. Every deadline is one of silence: it starts
anew whenever bytes move; only `within` bounds the whole. Only `abort` may be called from another
thread.

Over TLS an end without close_notify counts as the peer's end: no xend from 4.0 on says good-bye.
Whoever can forge a FIN can so cut a stream short; every format has its own mark of the end, except
the last record of a HVM guest from xend, which is taken as whole if it begins with its magic.
"""

from __future__ import annotations

import fcntl
import functools
import os
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from types import TracebackType
from typing import TypeVar

from xendpy.errors import (
    ChannelAborted,
    ChannelError,
    ChannelTimeout,
    HandshakeError,
    StreamTruncated,
)
from xendpy.migration.receive import read_rest
from xendpy.relocation.packing import Packer
from xendpy.relocation.sums import FrameSums
from xendpy.relocation.transport import PlainTransport, TlsTransport, Transport

T = TypeVar("T")

IOV_MAX = 1024  # Linux, uapi/linux/uio.h UIO_MAXIOV
PIECE = 1 << 16  # bytes asked for where only their coming is of interest
ACK_POLL_S = 0.002
OUTQ = struct.Struct("@i")  # what TIOCOUTQ writes
SHORTEST_S = 0.001


class EofKind(Enum):
    """What came instead of more stream."""

    EOF = "closed its end"
    DATA = "sent more bytes"
    TIMEOUT = "stayed silent"
    RESET = "reset the connection"


def unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes sent have not been acknowledged (unix socket: not been read).

    Raises:
        OSError: the connection is broken: the count would stay as it is.
    """
    broken = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if broken:
        raise OSError(broken, os.strerror(broken))
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, OUTQ.pack(0))
    return int(OUTQ.unpack(answer)[0])


class Channel:
    """The bytes of one migration. Runs in a worker thread; owns `sock`.

    `prefix` is payload that came together with the op; it is read first. `offset` counts payload
    bytes handed out, from the first byte after the op's line.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        peer: str = "",
        prefix: bytes = b"",
        stall_timeout_s: float = 60.0,
    ) -> None:
        self.peer = peer
        self.offset = 0
        self.sums: FrameSums | None = None  # the frames' digests, once agreed on; see frames
        self.packer: Packer | None = None  # what makes the image smaller, likewise
        self.streams = False  # whether the image may have further connections; see stripes
        self._sock = sock
        self._prefix = memoryview(prefix)
        self._stall_timeout_s = stall_timeout_s
        self._transport: Transport = (
            TlsTransport(sock) if isinstance(sock, ssl.SSLSocket) else PlainTransport(sock)
        )
        self._ended = False
        self._closed = False
        self._until_s: float | None = None
        self._aborted = threading.Event()
        self._lifetime = threading.Lock()  # abort must not shut down a descriptor used anew
        self._tied: tuple[Channel, ...] = ()

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, for `select`; -1 once closed."""
        return self._sock.fileno()

    @contextmanager
    def deadline(self, timeout_s: float) -> Iterator[None]:
        """Bound silence by `timeout_s` instead of the stall timeout, within the block."""
        before, self._stall_timeout_s = self._stall_timeout_s, timeout_s
        try:
            yield
        finally:
            self._stall_timeout_s = before

    @contextmanager
    def within(self, total_s: float) -> Iterator[None]:
        """Bound all that happens within the block together, however the bytes trickle."""
        self._until_s = time.monotonic() + total_s
        try:
            yield
        finally:
            self._until_s = None

    def readable(self) -> bool:
        """Whether a read would find something at once: bytes, the peer's end, or an error."""
        return bool(self._prefix) or self._ended or self._transport.readable()

    def recv_into(self, views: Sequence[memoryview]) -> None:
        """Fill `views`, of bytes, in order.

        Raises:
            StreamTruncated: the peer closed its end first; `offset` is where the views begin.
            ChannelTimeout: nothing came for the stall timeout.
            ChannelAborted: `abort` was called.
            ChannelError: the connection broke; a reset is never taken for an end.
        """
        todo = views if all(views) else [view for view in views if len(view)]
        start, wanted, done = self.offset, sum(map(len, todo)), 0
        while done < wanted:
            count = self._recv_some(todo[:IOV_MAX], "receiving", whole=True)
            if not count:
                raise StreamTruncated(offset=start, wanted=wanted, got=done)
            done += count
            if done < wanted:
                todo = _rest(todo, count)

    def recv_exactly(self, count: int) -> bytes:
        """Return the next `count` bytes; errors as `recv_into`."""
        data = bytearray(count)
        self.recv_into([memoryview(data)])
        return bytes(data)

    def recv_some(self, view: memoryview) -> int:
        """Read what is there into `view` and return its length; 0 = the peer closed its end."""
        return self._recv_some([view], "receiving")

    def recv_rest(self, limit: int) -> bytes:
        """Return everything up to the peer's end.

        Raises:
            StreamError: more than `limit` bytes.
        """
        return read_rest(self, limit)

    def recv_line(self, limit: int, *, timeout_s: float | None = None) -> bytes:
        """Return the next line with its newline; without one, the peer ended in it.

        Reads byte by byte: what follows the line may be for somebody else. `timeout_s` of
        silence, None = the channel's own.

        Raises:
            HandshakeError: no newline within `limit` bytes.
        """
        line = bytearray()
        byte = memoryview(bytearray(1))
        while not line.endswith(b"\n") and self._recv_some([byte], "receiving a line", timeout_s):
            line += byte
            if len(line) > limit:
                raise HandshakeError(
                    f"no end of line within {limit} bytes", peer=self.peer, line=bytes(line)
                )
        return bytes(line)

    def send(self, views: Sequence[bytes | memoryview]) -> None:
        """Hand all of `views` to the kernel, in order; errors as `recv_into`."""
        todo: Sequence[memoryview] = [memoryview(view) for view in views if len(view)]
        while todo:
            piece = todo[:IOV_MAX]
            sent = self._call(functools.partial(self._transport.send, piece), "sending", None)
            todo = _rest(todo, sent)

    def half_close(self) -> None:
        """Say that nothing more will be sent; receiving goes on."""
        with self._translated("closing one direction", 0.0):
            # Not SSLSocket.shutdown, which would drop the TLS state receiving still needs.
            socket.socket.shutdown(self._sock, socket.SHUT_WR)

    def wait_eof(self, timeout_s: float) -> EofKind:
        """Wait for the peer to close its end; `DATA` has consumed what it sent instead.

        Raises:
            ChannelAborted: `abort` was called.
        """
        try:
            count = self._recv_some([memoryview(bytearray(PIECE))], "waiting", timeout_s)
        except ChannelTimeout:
            return EofKind.TIMEOUT
        except ChannelAborted:
            raise
        except ChannelError:
            return EofKind.RESET
        return EofKind.DATA if count else EofKind.EOF

    def wait_acknowledged(self, timeout_s: float) -> bool:
        """Wait until the peer's kernel has all that was sent; False if it has not in time.

        Raises ChannelError if the connection broke first. Polls, because the kernel reports an
        acknowledgement to nobody: TIOCOUTQ is the only place where it shows.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._translated("waiting for the acknowledgement", timeout_s):
            while unacknowledged(self._sock):
                if time.monotonic() >= deadline_s or self._aborted.wait(ACK_POLL_S):
                    return False
        return True

    def abort(self) -> None:
        """Cut the connection, wake a blocked call: it raises ChannelAborted. Any thread."""
        with self._lifetime:
            self._aborted.set()
            tied = self._tied
            if not self._closed:
                with suppress(OSError):  # not connected any more: nobody is blocked in it
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        for other in tied:
            other.abort()

    def also_abort(self, other: Channel) -> None:
        """Have `abort` cut `other` too; an abort that came before counts."""
        with self._lifetime:
            self._tied = (*self._tied, other)
            aborted = self._aborted.is_set()
        if aborted:
            other.abort()

    def close(self) -> None:
        """Close the socket; what was not read makes the kernel send a reset. May be repeated."""
        with self._lifetime:
            if not self._closed:
                self._closed = True
                self._sock.close()

    def _recv_some(
        self,
        views: Sequence[memoryview],
        doing: str,
        timeout_s: float | None = None,
        *,
        whole: bool = False,
    ) -> int:
        if self._prefix:
            return self._take_prefix(views[0])
        if self._ended:
            return 0
        whole = whole and self._until_s is None  # what is bounded as a whole comes piece by piece
        count = self._call(lambda: self._transport.recv(views, whole=whole), doing, timeout_s)
        self._ended = not count
        self.offset += count
        return count

    def _take_prefix(self, view: memoryview) -> int:
        count = min(len(self._prefix), view.nbytes)
        view[:count] = self._prefix[:count]
        self._prefix = self._prefix[count:]
        self.offset += count
        return count

    def _call(self, call: Callable[[], T], doing: str, timeout_s: float | None) -> T:
        if self._aborted.is_set():
            raise ChannelAborted(f"cut while {doing}", peer=self.peer)
        timeout_s = self._stall_timeout_s if timeout_s is None else timeout_s
        if self._until_s is not None:
            timeout_s = min(timeout_s, self._until_s - time.monotonic())
            if timeout_s <= 0:
                raise ChannelTimeout(doing, after_s=0, peer=self.peer)
        try:
            self._transport.bound(max(timeout_s, SHORTEST_S))
            result = call()
        except OSError as error:
            raise self._error(error, doing, timeout_s) from error
        if self._aborted.is_set():  # shutdown looks like the peer's end to a blocked recv
            raise ChannelAborted(f"cut while {doing}", peer=self.peer)
        return result

    @contextmanager
    def _translated(self, doing: str, timeout_s: float) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(error, doing, timeout_s) from error

    def _error(self, error: OSError, doing: str, timeout_s: float) -> ChannelError:
        if self._aborted.is_set():
            return ChannelAborted(f"cut while {doing}", peer=self.peer)
        if isinstance(error, TimeoutError | BlockingIOError):
            return ChannelTimeout(doing, after_s=timeout_s, peer=self.peer)
        reason = (error.strerror or str(error)).lower()
        if isinstance(error, ssl.SSLError) and error.reason:
            reason = f"TLS: {error.reason.replace('_', ' ').lower()}"
        return ChannelError(f"{reason} while {doing}", peer=self.peer)


def _rest(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return `views` without their first `count` bytes."""
    for index, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[index + 1 :]]
        count -= len(view)
    return []
