"""A child's pipes: gathered writes and exact reads that a deadline, or another thread, can end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from xendpy.errors import HypervisorError, StreamTruncated
from xendpy.guest.staging import Staging
from xendpy.stream.records import Record
from xendpy.stream.steps import Fill, Passed, Populate, Step, Steps, Take, TakeRest, Tell

IOV_MAX = 1024  # Linux, uapi/linux/uio.h UIO_MAXIOV
PIPE_BYTES = 1 << 20  # the most that an unprivileged process may ask for
LOOK_S = 0.5  # how long a cancelled call may go on
STALL_S = 300.0  # xl waits that long for a guest's devices without taking a byte

Check: TypeAlias = Callable[[], None]


def pipe() -> tuple[int, int]:
    """Return (read end, write end), not inherited, as large as a process may make it."""
    ends = os.pipe2(os.O_CLOEXEC)
    enlarge(ends[1])
    return ends


def enlarge(fd: int) -> None:
    """Make a pipe, by either end, as large as a process may make it."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _ready(fd: int, event: int, stall_s: float, check: Check) -> bool:
    """Wait until `fd` can be used, or has failed; False after `stall_s` seconds."""
    poll = select.poll()
    poll.register(fd, event)
    deadline_s = time.monotonic() + stall_s
    while time.monotonic() < deadline_s:
        check()
        if poll.poll(LOOK_S * 1000):
            return True
    return False


class PipeWriter:
    """The write end of a pipe; owns `fd`. `check` raises when somebody has cancelled."""

    def __init__(self, fd: int, *, check: Check = lambda: None, stall_s: float = STALL_S) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._check = check
        self._stall_s = stall_s

    def write(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Write all of `pieces`.

        Raises:
            BrokenPipeError: nobody reads any more.
            HypervisorError: nobody read for `stall_s` seconds.
        """
        todo = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        while todo:
            try:
                count = os.writev(self._fd, todo[:IOV_MAX])
            except BlockingIOError:
                if not _ready(self._fd, select.POLLOUT, self._stall_s, self._check):
                    reason = f"xl took nothing for {self._stall_s:g} s"
                    raise HypervisorError(reason, operation="restore") from None
                continue
            while todo and count >= todo[0].nbytes:
                count -= todo.pop(0).nbytes
            if count:
                todo[0] = todo[0][count:]

    def close(self) -> None:
        """Tell the reader that this is the end. May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class PipeReader:
    """The read end of a pipe, as a decoder's source; owns `fd`. `check` as in PipeWriter."""

    def __init__(self, fd: int, *, check: Check = lambda: None, stall_s: float = STALL_S) -> None:
        self._fd = fd
        self._check = check
        self._stall_s = stall_s
        self.offset = 0

    def recv_into(self, views: Sequence[memoryview]) -> None:
        """Fill `views`.

        Raises:
            StreamTruncated: the writer has closed.
            HypervisorError: nothing came for `stall_s` seconds.
        """
        start = self.offset
        wanted = sum(view.nbytes for view in views)
        for view in views:
            rest = view.cast("B")
            while rest:
                count = self._read_some(rest)
                if not count:
                    raise StreamTruncated(offset=start, wanted=wanted, got=self.offset - start)
                rest = rest[count:]

    def recv_exactly(self, count: int) -> bytes:
        """Return the next `count` bytes; errors as `recv_into`."""
        data = bytearray(count)
        self.recv_into([memoryview(data)])
        return bytes(data)

    def recv_some(self, view: memoryview) -> int:
        """Read at least one byte into `view`; 0 = the end."""
        return self._read_some(view)

    def _read_some(self, view: memoryview) -> int:
        if not _ready(self._fd, select.POLLIN, self._stall_s, self._check):
            raise HypervisorError(f"xl wrote nothing for {self._stall_s:g} s", operation="save")
        count = os.readv(self._fd, [view])
        self.offset += count
        return count

    def close(self) -> None:
        """Read no more: the writer's next write fails. May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def pull(steps: Steps[Any], source: PipeReader) -> Iterator[Record]:
    """Yield the records of a decoder as the source gives them.

    The views of a `Pages` are staging memory, valid until the next record is asked for.
    """
    staging = Staging()
    try:
        step = next(steps)
        while True:
            if not isinstance(step, Take | TakeRest | Tell | Populate | Fill | Passed):
                yield step
                answer = None
            else:
                answer = _answer(step, source, staging)
            step = steps.send(answer)
    except StopIteration:
        return
    finally:
        steps.close()


def _answer(step: Step, source: PipeReader, staging: Staging) -> Any:
    match step:
        case Take(count):
            return source.recv_exactly(count)
        case Populate(batch):
            return staging.view(batch)
        case Fill(views):
            return source.recv_into(views)
        case Tell():
            return source.offset
        case Passed():
            return None
        case _:
            raise AssertionError(f"{type(step).__name__} in a stream of xl")
