"""A TCP proxy that breaks a migration's connection where a test wants it broken.

It follows the framing of xendpy's own protocol (relocation/frames.py): control lines, then frames
of u32 type and u32 length, with digests where the `(ready` line has the feature. A place is the
end of a line or of a frame, in one direction, or a byte offset. One connection is hurt; all later
ones pass.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

CUT, STALL, HALF_CLOSE = "cut", "stall", "half-close"
KINDS = (CUT, STALL, HALF_CLOSE)
UP, DOWN = "up", "down"  # from the source to the target, and back
HEADER = struct.Struct("<II")
SUMS = b"xxh3"
SHORT_BYTES, LONG_BYTES = 8, 16  # relocation/sums.py


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the connection once `unit` units of a direction have passed.

    `unit` counts ends of lines and frames; with `offset` >= 0 that byte counts instead.
    """

    kind: str
    direction: str
    unit: int = -1
    offset: int = -1


class _Scanner:
    """Finds where units end in the bytes of one direction."""

    def __init__(self, proxy: Proxy, direction: str) -> None:
        self._proxy = proxy
        self._direction = direction
        self._framed = False
        self._buffer = b""
        self._skip = 0
        self.offset = 0

    def feed(self, data: bytes) -> list[int]:
        """Return the offsets, from the connection's start, at which units end within `data`."""
        ends = []
        base = self.offset - len(self._buffer)
        self._buffer += data
        self.offset += len(data)
        position = 0
        while True:
            size = self._unit(position)
            if size is None:
                break
            position += size
            if position > len(self._buffer):
                # The rest of a frame is still to come: remember how much of it.
                self._skip = position - len(self._buffer)
                position = len(self._buffer)
                break
            ends.append(base + position)
        self._buffer = self._buffer[position:]
        return ends

    def _unit(self, position: int) -> int | None:
        rest = self._buffer[position:]
        if self._skip:
            size, self._skip = self._skip, 0
            return size if rest else self._put_back(size)
        if not self._framed:
            end = rest.find(b"\n")
            if end < 0:
                return None
            self._line(rest[: end + 1])
            return end + 1
        if len(rest) < HEADER.size:
            return None
        length = HEADER.unpack_from(rest)[1]
        sums = self._proxy.sums
        return HEADER.size + length + (SHORT_BYTES + LONG_BYTES * bool(length) if sums else 0)

    def _put_back(self, size: int) -> None:
        self._skip = size

    def _line(self, line: bytes) -> None:
        opening = b"(xendpy-receive " if self._direction == UP else b"(ready xendpy-receive"
        if line.startswith(opening):
            self._framed = True
            if self._direction == DOWN:
                self._proxy.sums = SUMS in line


class Proxy:
    """Listens on a port of its own for `target`; a context manager."""

    def __init__(
        self, target: tuple[str, int], *, listen: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        self._target = target
        self._listener = socket.create_server(listen)
        self.port: int = self._listener.getsockname()[1]
        self._fault: Fault | None = None
        self.hurt = threading.Event()
        self.sums = False
        self.units: dict[str, int] = {UP: 0, DOWN: 0}
        self.bytes: dict[str, int] = {UP: 0, DOWN: 0}
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, fault: Fault | None) -> None:
        """Hurt the next migration so; None: only count."""
        self._fault = fault
        self.hurt.clear()
        self.units = {UP: 0, DOWN: 0}
        self.bytes = {UP: 0, DOWN: 0}

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target, timeout=80)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                fault, self._fault = self._fault, None
                Connection(self, near, far, fault)


class Connection:
    """One connection through the proxy."""

    def __init__(
        self, proxy: Proxy, near: socket.socket, far: socket.socket, fault: Fault | None
    ) -> None:
        self._proxy = proxy
        self._fault = fault
        self._sockets = (near, far)
        self._stalled = threading.Event()
        self._open = 2
        self._lock = threading.Lock()
        for source, target, direction in ((near, far, UP), (far, near, DOWN)):
            pump: Callable[..., None] = self._pump
            arguments = (source, target, direction)
            threading.Thread(target=pump, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        scanner = _Scanner(self._proxy, direction)
        units = 0
        try:
            while data := source.recv(1 << 16):
                start = scanner.offset
                ends = scanner.feed(data)
                cut = self._cut(direction, start, start + len(data), ends, units)
                units += len(ends)
                self._proxy.units[direction] += len(ends)
                self._proxy.bytes[direction] += len(data)
                if self._stalled.is_set():
                    continue  # swallowed, as on a network that went away
                if cut is None:
                    target.sendall(data)
                    continue
                target.sendall(data[: cut - start])
                self._hurt(target)
                if self._fault is not None and self._fault.kind == HALF_CLOSE:
                    while source.recv(1 << 16):
                        pass
                    break
        except OSError:
            pass
        with suppress(OSError):
            if not self._stalled.is_set():
                target.shutdown(socket.SHUT_WR)
        self._done()

    def _cut(
        self, direction: str, start: int, stop: int, ends: list[int], units: int
    ) -> int | None:
        """Return the offset at which the fault is due within these bytes."""
        fault = self._fault
        if fault is None or fault.direction != direction or self._proxy.hurt.is_set():
            return None
        if fault.offset >= 0:
            return fault.offset if start < fault.offset <= stop else None
        index = fault.unit - units - 1
        return ends[index] if 0 <= index < len(ends) else None

    def _hurt(self, target: socket.socket) -> None:
        assert self._fault is not None
        self._proxy.hurt.set()
        if self._fault.kind == HALF_CLOSE:
            target.shutdown(socket.SHUT_WR)
        elif self._fault.kind == STALL:
            self._stalled.set()
        else:
            reset = struct.pack("ii", 1, 0)
            for end in self._sockets:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RD)
            for end in self._sockets:
                end.close()

    def _done(self) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0:
                for end in self._sockets:
                    end.close()
