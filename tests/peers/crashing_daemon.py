"""A daemon that ends itself with SIGKILL, or whose disk fails, at a chosen moment of a hand-over.

    python -m tests.peers.crashing_daemon --root DIR

runs `xend start --foreground` of the root. When the file DIR/at appears, its text is the moment at
which the process kills itself, having removed the file:

    journal:DIRECTION:STEP:WHEN   when that step of a migration is written down
    frame:send:TYPE:WHEN          when that frame goes out
    frame:recv:TYPE:after         when that frame has come in
    durable:N:WHEN                at the Nth durable operation after the first journalled step

with WHEN `before` or `after`. DIR/moments gets a line for each moment passed. Two more do not
kill it:

    durable:N:error               that operation fails once
    durable:N:full                from that operation on all fail, until DIR/at is gone
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xendpy.cli import xend
from xendpy.hypervisor.durable import Durable
from xendpy.migration import handover, journal
from xendpy.relocation import frames

OPERATIONS = ("create", "append", "sync", "sync_dir", "rename", "unlink")


class Moments:
    """Compares what happens with the moment that ends the process."""

    def __init__(self, root: Path) -> None:
        self._at = root / "at"
        self._passed = root / "moments"
        self._operations: int | None = None
        self._armed = ""

    def passed(self, moment: str) -> None:
        """Take note of a moment; perhaps do not return."""
        with self._passed.open("a") as file:
            file.write(f"{moment}\n")
        if moment == self._wanted():
            self._at.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def _wanted(self) -> str:
        try:
            armed = self._at.read_text()
        except FileNotFoundError:
            return ""
        if armed != self._armed:
            self._armed, self._operations = armed, None
        return armed

    def _fail(self, operation: int) -> None:
        """Let the disk fail, if this is the moment."""
        wanted = self._wanted().split(":")
        if wanted[0] != "durable" or not 0 < int(wanted[1]) <= operation:
            return
        if wanted[2] == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if wanted[2] == "error" and int(wanted[1]) == operation:
            self._at.unlink()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def around(self, name: str, act: Callable[[], Any]) -> Any:
        """Do something whose beginning and end are moments."""
        self.passed(f"{name}:before")
        result = act()
        self.passed(f"{name}:after")
        return result

    def journalled(self, entry: handover.Entry, write: Callable[[], None]) -> None:
        """Do a write of the journal."""
        self.passed(f"journal:{entry.direction}:{entry.step}:before")
        self._operations = self._operations or 0
        write()
        self.passed(f"journal:{entry.direction}:{entry.step}:after")

    def durable(self, operate: Callable[[], Any]) -> Any:
        """Do one operation of `Durable`."""
        if self._operations is None:
            return operate()
        self._operations += 1
        self._fail(self._operations)
        return self.around(f"durable:{self._operations}", operate)


def watch(moments: Moments) -> None:
    """Have every moment of this process pass `moments`."""
    _watch_journal(moments)
    for name in OPERATIONS:
        setattr(Durable, name, _watched(moments, getattr(Durable, name)))
    _watch_frames(moments)


def _watch_journal(moments: Moments) -> None:
    write = journal.Journal._write

    def watched(book: journal.Journal, entry: handover.Entry) -> None:
        moments.journalled(entry, lambda: write(book, entry))

    journal.Journal._write = watched  # type: ignore[method-assign]  # what this module is for


def _watched(moments: Moments, original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: moments.durable(lambda: original(*args, **kwargs))


def _watch_frames(moments: Moments) -> None:
    send, receive = frames.send_frame, frames.recv_header

    def send_frame(wire: frames.Wire, kind: frames.FrameType, body: bytes = b"") -> None:
        moments.around(f"frame:send:{kind.name}", lambda: send(wire, kind, body))

    def recv_header(wire: frames.Wire) -> tuple[frames.FrameType, int]:
        kind, length = receive(wire)
        if kind is not frames.FrameType.DATA:
            moments.passed(f"frame:recv:{kind.name}:after")
        return kind, length

    frames.send_frame = send_frame
    frames.recv_header = recv_header


def main() -> int:
    """Be the daemon."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, type=Path)
    return run(parser.parse_args().root)


def run(root: Path) -> int:
    """Be the daemon of that root."""
    watch(Moments(root))
    return int(xend.main(["--root", str(root), "start", "--foreground"]) or 0)


if __name__ == "__main__":
    sys.exit(main())
