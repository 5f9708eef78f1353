"""One image over several connections: the feature `streams` of the framing.

After RESERVED the source opens further connections to the same port, each with

    (xendpy-stream (id HEX128) (index K))            K = 1, 2, ...

and is answered `(ready xendpy-stream)`. Then it says in a STREAMS frame, on the first connection,
how many there are, and what it sends from the next byte on, up to the end of IMAGE_END, is dealt
out in stripes of 256 KiB: byte i travels on connection i / 256 KiB modulo their count. What the
target says stays on the first.

It pays where one connection is slower than the machine: TLS, which then has a processor for each
connection, long ways, and bonds that spread connections over their lines.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from queue import SimpleQueue
from typing import TypeAlias

from xendpy.errors import ChannelError, HandshakeError, StreamTruncated, XendError
from xendpy.relocation.channel import Channel

OPERATION = "xendpy-stream"
FEATURE = "streams"
STRIPE = 256 << 10  # bytes: a batch of 4 MiB gives each of 16 connections one
MAX_STREAMS = 16
_REQUEST = re.compile(rf"\({OPERATION} \(id ([0-9a-f]{{32}})\) \(index ([0-9]{{1,2}})\)\)")

Views = Sequence[bytes | memoryview]
Results: TypeAlias = "SimpleQueue[BaseException | None]"


def opening(migration_id: str, index: int) -> bytes:
    """Return the line by which a source opens a further connection of a migration."""
    return f"({OPERATION} (id {migration_id}) (index {index}))\n".encode()


def parse_opening(text: str) -> tuple[str, int]:
    """Return migration id and index of such a line, printed as a s-expression.

    Raises:
        HandshakeError: it is none, or the index is out of range.
    """
    match = _REQUEST.fullmatch(text)
    if match is None or not 0 < int(match[2]) < MAX_STREAMS:
        raise HandshakeError(
            f"expected ({OPERATION} (id HEX128) (index K)) with K from 1 to {MAX_STREAMS - 1}"
        )
    return match[1], int(match[2])


class Lane:
    """A further connection, and the thread that moves its bytes: the one that calls `run`.

    Where nobody has a thread for it, `start` gives it one.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._work: SimpleQueue[tuple[Callable[[], None], Results] | None] = SimpleQueue()

    def start(self) -> None:
        """Run in a thread that is ended by `close`, and closes the connection then."""
        threading.Thread(target=self._run_and_close, name="stream", daemon=True).start()

    def run(self) -> None:
        """Move bytes until `close`."""
        while (order := self._work.get()) is not None:
            work, results = order
            try:
                work()
            except BaseException as error:  # belongs to the thread that waits for it
                results.put(error)
            else:
                results.put(None)

    def _run_and_close(self) -> None:
        with self.channel:
            self.run()

    def begin(self, work: Callable[[], None], results: Results) -> None:
        """Have `work` done with the channel; `results` is given what it raises, or None."""
        self._work.put((work, results))

    def close(self) -> None:
        """End `run`. Any thread; may be repeated."""
        self._work.put(None)


class Stripes:
    """What framing needs of a channel, over `first` alone or, once widened, over all lanes.

    Receiving and sending count their stripes together: on either side one of them is striped.
    The lanes' threads only work during a call; views are not kept.
    """

    def __init__(self, first: Channel) -> None:
        self.sums = first.sums
        self._first = first
        self._lanes: tuple[Lane, ...] = ()
        self._position = 0

    @property
    def count(self) -> int:
        """How many connections there are."""
        return 1 + len(self._lanes)

    def widen(self, lanes: Sequence[Lane]) -> None:
        """Deal out what follows over the first connection and `lanes`, in this order."""
        assert not self._lanes, "the stripes have their lanes"
        self._lanes, self._position = tuple(lanes), 0
        for lane in lanes:
            self._first.also_abort(lane.channel)

    def narrow(self) -> None:
        """Go back to the first connection alone, and let the lanes go. May be repeated."""
        lanes, self._lanes = self._lanes, ()
        for lane in lanes:
            lane.close()

    def send(self, views: Views) -> None:
        """Hand all of `views` to the kernel; errors as `Channel.send`."""
        if not self._lanes:
            self._first.send(views)
            return
        self._move(self._dealt([memoryview(view) for view in views if len(view)]), Channel.send)

    def recv_into(self, views: Sequence[memoryview]) -> None:
        """Fill `views` in order; errors as `Channel.recv_into`."""
        if not self._lanes:
            self._first.recv_into(views)
            return
        self._move(self._dealt(views), Channel.recv_into)

    def recv_exactly(self, count: int) -> bytes:
        """Return the next `count` bytes; errors as `recv_into`."""
        data = bytearray(count)
        self.recv_into([memoryview(data)])
        return bytes(data)

    def _dealt(self, views: Sequence[memoryview]) -> list[list[memoryview]]:
        """Return what of `views` belongs to each connection."""
        parts: list[list[memoryview]] = [[] for _ in range(self.count)]
        ends = list(accumulate(map(len, views)))
        begin, total = 0, ends[-1] if ends else 0
        while begin < total:
            stripe, used = divmod(self._position, STRIPE)
            end = min(begin + STRIPE - used, total)
            parts[stripe % self.count] += _between(views, ends, begin, end)
            self._position += end - begin
            begin = end
        return parts

    def _move(
        self,
        parts: Sequence[list[memoryview]],
        move: Callable[[Channel, list[memoryview]], None],
    ) -> None:
        """Move each part over its connection, all at once."""
        channels = [self._first, *(lane.channel for lane in self._lanes)]
        orders = [
            (index, partial(move, channel, part))
            for index, (channel, part) in enumerate(zip(channels, parts, strict=True))
            if part
        ]
        # No thread is woken for a header, which is on one connection; the first has none.
        here = [orders.pop(0)[1]] if orders and (len(orders) == 1 or parts[0]) else []
        failures: list[BaseException] = []
        results: Results = SimpleQueue()
        for index, order in orders:
            self._lanes[index - 1].begin(order, results)
        for order in here:
            try:
                order()
            except XendError as error:
                self._note(failures, error)
        for _ in orders:
            told = results.get()
            if told is not None:
                self._note(failures, told)
        if failures:
            raise _lost(failures[0], self.count) from failures[0]

    def _note(self, failures: list[BaseException], error: BaseException) -> None:
        # The other lanes would wait for bytes that will not come. The first connection is left:
        # the peer may say there what happened.
        failures.append(error)
        for lane in self._lanes:
            lane.channel.abort()


def _between(
    views: Sequence[memoryview], ends: Sequence[int], begin: int, end: int
) -> list[memoryview]:
    """Return the bytes from `begin` to `end` of `views`, the i-th of which ends at `ends[i]`."""
    first, last = bisect_right(ends, begin), bisect_left(ends, end)
    some = list(views[first : last + 1])
    beyond, before = ends[last] - end, begin - (ends[first] - len(views[first]))
    if beyond:
        some[-1] = some[-1][:-beyond]
    if before:
        some[0] = some[0][before:]
    return some


def _lost(failure: BaseException, count: int) -> BaseException:
    if isinstance(failure, StreamTruncated):
        return ChannelError(f"one of {count} connections was closed in the middle of the image")
    return failure
