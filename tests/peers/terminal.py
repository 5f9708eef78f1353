"""A program on a terminal of its own, as a user has it: what it shows, and what is typed."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

DEADLINE_S = 180.0
CTRL_C = b"\x03"


class Terminal:
    """The user's side of a pseudo terminal."""

    def __init__(self, fd: int) -> None:
        self.shown = ""
        self._fd = fd

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def read_until(self, text: str, *, or_times: int = 0, of: str = "") -> bool:
        """Read until `text` has been shown; '' = until the program has let the terminal go.

        With `or_times`, return False when it has not but `of` has been shown that often since.
        """
        end = time.monotonic() + DEADLINE_S
        enough = self.shown.count(of) + or_times
        while not text or text not in self.shown:
            if or_times and self.shown.count(of) >= enough:
                return False
            ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} was not shown within {DEADLINE_S:g} s: {self.shown}"
            try:
                data = os.read(self._fd, 4096)
            except OSError:  # EIO: nobody has the other side open
                data = b""
            if not data:
                assert not text, f"{text!r} was never shown: {self.shown}"
                return True
            self.shown += data.decode("utf-8", "replace")
        return True


@contextmanager
def on_terminal(*argv: str) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """Run a program whose controlling terminal is the one that is given back."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv], stdin=theirs, stdout=theirs, stderr=theirs
        )
    finally:
        os.close(theirs)
    try:
        yield Terminal(ours), process
    finally:
        os.close(ours)  # which hangs up on a program that still runs
        process.wait(DEADLINE_S)
