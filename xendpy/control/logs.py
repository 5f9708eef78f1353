"""xend.log: the format, the rotation, and what goes to the journal.

Source: XendLogging.py, Xen 3.1 - 4.4: `[YYYY-MM-DD HH:MM:SS PID] LEVEL (Module:line) text`,
1 MiB, five old files; a file that cannot be opened is replaced by one in the temporary
directory. Under systemd every line also goes to standard error behind its syslog priority.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

MAX_BYTES = 1 << 20
BACKUPS = 5
TRACE = logging.DEBUG - 1
MAX_TAIL = 2 << 20  # bytes of the log that one RPC reply may carry; twice a full file

# syslog(3) priorities, sd-daemon(3) prefixes
_PRIORITIES = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}


class XendFormatter(logging.Formatter):
    """Print a record as xend did."""

    def __init__(self) -> None:
        super().__init__(
            "[%(asctime)s %(process)d] %(levelname)s (%(module)s:%(lineno)d) %(message)s",
            "%Y-%m-%d %H:%M:%S",
        )


class PriorityFormatter(logging.Formatter):
    """Print a record for the journal, which has time, pid and level of its own."""

    def __init__(self) -> None:
        super().__init__("(%(module)s:%(lineno)d) %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{priority(record.levelno)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class PrivateRotatingFileHandler(RotatingFileHandler):
    """A rotating file that only its owner and group read, created anew at each rotation."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")


def priority(level: int) -> int:
    """Return the syslog priority of a logging level."""
    for known, number in _PRIORITIES.items():
        if level >= known:
            return number
    return 7


def level_of(name: str) -> int:
    """Return the level that xend's `loglevel` names; unknown names mean DEBUG, xend's default."""
    if name.upper() == "TRACE":
        return TRACE
    return logging.getLevelNamesMapping().get(name.upper(), logging.DEBUG)


def set_up(
    path: Path,
    level: str,
    *,
    console: bool = False,
    environ: Mapping[str, str] = os.environ,
    stream: TextIO | None = None,
) -> Path:
    """Send the log of this process to `path`, under systemd or a `console` to `stream` as well.

    `stream` None = standard error. Returns the file that is written; calling it again replaces
    what was set up before.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if getattr(handler, "xend_log", False):
            root.removeHandler(handler)
            handler.close()
    logging.addLevelName(TRACE, "TRACE")
    file_handler = _file_handler(path)
    file_handler.setFormatter(XendFormatter())
    handlers: list[logging.Handler] = [file_handler]
    if environ.get("JOURNAL_STREAM") or environ.get("NOTIFY_SOCKET"):
        journal = logging.StreamHandler(stream or sys.stderr)
        journal.setFormatter(PriorityFormatter())
        handlers.append(journal)
    elif console:
        terminal = logging.StreamHandler(stream or sys.stderr)
        terminal.setFormatter(XendFormatter())
        handlers.append(terminal)
    for handler in handlers:
        handler.xend_log = True  # type: ignore[attr-defined]  # our mark, read above
        root.addHandler(handler)
    root.setLevel(level_of(level))
    logging.getLogger("asyncio").setLevel(max(level_of(level), logging.INFO))
    return Path(file_handler.baseFilename)


def _file_handler(path: Path) -> RotatingFileHandler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return PrivateRotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=BACKUPS)
    except OSError:
        descriptor, name = tempfile.mkstemp(suffix="-xend.log")
        os.close(descriptor)
        return PrivateRotatingFileHandler(name, maxBytes=MAX_BYTES, backupCount=BACKUPS)


def tail(path: Path, limit: int = MAX_TAIL) -> str:
    """Return the last whole lines of the log, at most `limit` bytes; empty if there is no file.

    Blocks on the disk.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            data = file.read(limit)
    except OSError:
        return ""
    if size > limit:
        data = data[data.find(b"\n") + 1 :]
    return data.decode("utf-8", "replace")
