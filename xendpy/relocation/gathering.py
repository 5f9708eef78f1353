"""The connections that a source opens for one migration besides its first.

Each is joined by its own worker, before the migration's worker is told how many there are.
"""

from __future__ import annotations

from threading import Lock

from xendpy.errors import HandshakeError
from xendpy.relocation.channel import Channel
from xendpy.relocation.stripes import Lane


class Gathering:
    """The lanes of one incoming migration; any thread. `close` ends all that were joined."""

    def __init__(self) -> None:
        self._lanes: dict[int, Lane] = {}
        self._open = False
        self._lock = Lock()

    def open(self) -> None:
        """Let connections join: the guest's place is reserved."""
        with self._lock:
            self._open = True

    def join(self, index: int, channel: Channel) -> Lane:
        """Enter a connection and return its lane, which its worker then runs.

        Raises:
            HandshakeError: the migration wants none, or has one with this index.
        """
        with self._lock:
            if not self._open:
                raise HandshakeError(
                    "the migration takes no further connection", peer=channel.peer
                )
            if index in self._lanes:
                raise HandshakeError(f"there is a connection {index} already", peer=channel.peer)
            lane = self._lanes[index] = Lane(channel)
            return lane

    def take(self, count: int) -> list[Lane]:
        """Return lanes 1 to `count`; nobody joins any more.

        Raises:
            HandshakeError: one of them is not there.
        """
        with self._lock:
            self._open = False
            missing = [index for index in range(1, count + 1) if index not in self._lanes]
            if missing:
                raise HandshakeError(f"connection {missing[0]} of {count} more has not come")
            return [self._lanes[index] for index in range(1, count + 1)]

    def close(self) -> None:
        """End every lane. May be repeated."""
        with self._lock:
            self._open = False
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.close()
