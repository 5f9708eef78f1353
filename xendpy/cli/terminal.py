"""Leaving a terminal as it was found, Ctrl-C included."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EX_INTERRUPTED = 130


@contextmanager
def ending_on_interrupt() -> Iterator[None]:
    """Have Ctrl-C unwind what is inside, and exit as if it had killed the command."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(EX_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def keys_unseen(fd: int) -> Iterator[int]:
    """Have keys come one by one and without echo, where `fd` is a terminal."""
    if not os.isatty(fd):
        yield fd
        return
    import termios
    import tty

    before = termios.tcgetattr(fd)
    print("(Ctrl-] leaves the console)", file=sys.stderr)
    tty.setcbreak(fd)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
