"""Who may talk to the relocation port, and how many at a time.

Names are looked up in threads of their own: a slow resolver delays the peer it is about, and no
other.
"""

from __future__ import annotations

import resource
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

# At a time; each peer address has one at most, and a hanging one lasts. As many as connections by
# default: with a few threads, a few addresses whose name server hangs kept everybody from a name.
LOOK_UPS = 256
SPARE_DESCRIPTORS = 256  # for guests, logs, RPC
LOG_EVERY_S = 1.0


def full_name(address: str) -> str:
    """Return the peer's name as xend determines it; the address itself if it has none.

    connection.py: socket.getfqdn, the first name with a dot among host name and aliases.
    """
    return socket.getfqdn(address)


def confirmed(name: str, address: str) -> bool:
    """Say whether the look-up of `name` gives `address`: whoever owns an address range can give
    it any name in reverse DNS, and nobody but a name's owner the way back.
    """
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(place[0] == address for *_, place in found)


def confirmed_name(
    address: str,
    resolve: Callable[[str], str] = full_name,
    confirm: Callable[[str, str], bool] = confirmed,
) -> str:
    """Return the peer's name if the look-up of that name confirms it, else the address."""
    name = resolve(address)
    return name if name != address and confirm(name, address) else address


class Names:
    """Reverse look-ups that nobody has to wait for.

    A hanging one keeps its thread until the system's resolver gives up.
    """

    def __init__(self, resolve: Callable[[str], str] = full_name) -> None:
        self._resolve = resolve
        self._threads = ThreadPoolExecutor(LOOK_UPS, thread_name_prefix="resolve")
        self._running: dict[str, Future[str]] = {}

    def look_up(self, address: str) -> Future[str]:
        """Begin a look-up, or join the one that runs for this address. The loop's thread only."""
        running = self._running.get(address)
        if running is None or running.done():
            running = self._threads.submit(self._resolve, address)
            self._running = {
                known: future for known, future in self._running.items() if not future.done()
            }
            self._running[address] = running
        return running

    def close(self) -> None:
        """Begin no further look-up; those that run end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Counts:
    """How many connections there are, in all and by peer."""

    def __init__(self) -> None:
        self._by_peer: Counter[str] = Counter()
        self.total = 0

    def enter(self, peer: str, *, max_total: int, max_per_peer: int) -> str:
        """Count one more, or return why there is no room for it.

        The peer's own limit does not apply to '', the local socket.
        """
        limit = min(max_total, descriptor_limit())
        if self.total >= limit:
            return f"{self.total} connections are open, at most {limit} are allowed"
        if peer and self._by_peer[peer] >= max_per_peer:
            return f"{max_per_peer} connections from one peer are allowed"
        self._by_peer[peer] += 1
        self.total += 1
        return ""

    def leave(self, peer: str) -> None:
        """Count one less."""
        self.total -= 1
        self._by_peer[peer] -= 1
        if not self._by_peer[peer]:
            del self._by_peer[peer]


def descriptor_limit() -> int:
    """Return how many connections this process's descriptors are good for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 20
    return max(soft - SPARE_DESCRIPTORS, soft // 2)


class Muffler:
    """Lets one line a second through, and counts the others."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._muffled = 0

    def due(self, now_s: float) -> int | None:
        """Return None to say nothing, else how many were not said since the last time."""
        if now_s < self._next_s:
            self._muffled += 1
            return None
        muffled, self._muffled = self._muffled, 0
        self._next_s = now_s + LOG_EVERY_S
        return muffled
