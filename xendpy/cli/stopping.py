"""`xend stop`: end the daemon, gently while it answers, and surely when it does not."""

from __future__ import annotations

import math
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from xendpy.cli import daemon, unit
from xendpy.cli.migrations import moving_line
from xendpy.cli.rpc import Server, Silent
from xendpy.errors import ConfigError
from xendpy.paths import Paths

if TYPE_CHECKING:
    from xendpy.config import XendConfig

MARGIN_S: Final = 60.0  # beyond what migrations may take: saves, and guests that go along
ANSWER_S: Final = 10.0  # an answer takes milliseconds, on a busy host a second
SILENT_S: Final = 15.0  # how long a daemon that does not answer may take to obey SIGTERM
KILLED_S: Final = 10.0  # how long the kernel may take to end a process


class NotStopped(Exception):
    """The daemon is still there; the text says why."""


def stop(paths: Paths, pid: int, *, force: bool) -> None:
    """Stop the daemon `pid`. `force`: where the configuration refuses it too.

    Raises:
        NotStopped: it runs on.
    """
    config = _config(paths)
    server = Server(f"httpu://{paths.xmlrpc_socket}", timeout_s=ANSWER_S)
    deadline_s = config.drain_timeout_s + MARGIN_S if config.drain_timeout_s else math.inf
    try:
        moving = moving_line(server.call)
    except Silent:
        _say(f"pid {pid} does not answer; stopping it all the same")
        if unit.owns(pid):
            _stop_unit(pid)
        else:
            _stop_silent(server, pid, deadline_s)
        return
    if moving and config.stop_while_moving == "refuse" and not force:
        raise NotStopped(f"not stopped while guests move: {moving}; --force stops it all the same")
    if moving:
        _say(f"stopping, with {moving}")
    if unit.owns(pid):
        _stop_unit(pid)
    else:
        _drain(pid, deadline_s)


def _stop_unit(pid: int) -> None:
    """Have systemd stop its daemon: one that had to be killed would be started again by it."""
    if unit.ask("stop"):
        raise NotStopped(f"systemd has not stopped pid {pid}")


def _stop_silent(server: Server, pid: int, deadline_s: float) -> None:
    """Stop a daemon that does not answer: by its own means if SIGTERM wakes it, else by SIGKILL.

    Its guests live on without it, and what was being handed over is settled at the next start.
    """
    if _terminate(pid, SILENT_S):
        return
    with suppress(Silent):
        moving_line(server.call)
        # It has heard SIGTERM by now, and a second one would cut what it still lets end.
        if not daemon.wait_until_gone(pid, deadline_s=deadline_s):
            raise NotStopped(_still_moving(pid, deadline_s))
        return
    _say(f"pid {pid} does not obey: killing it")
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if not daemon.wait_until_gone(pid, deadline_s=KILLED_S):
        raise NotStopped(f"pid {pid} cannot be killed: it waits for a device")


def _drain(pid: int, deadline_s: float) -> None:
    if not _terminate(pid, deadline_s):
        raise NotStopped(_still_moving(pid, deadline_s))


def _still_moving(pid: int, deadline_s: float) -> str:
    return f"pid {pid} still finishes migrations after {deadline_s:g} s"


def _terminate(pid: int, deadline_s: float) -> bool:
    try:
        return daemon.stop(pid, deadline_s=deadline_s)
    except PermissionError as error:
        raise NotStopped(f"cannot stop pid {pid}: {error.strerror}") from error


def _config(paths: Paths) -> XendConfig:
    """Return what the file says; a file that cannot be read keeps no daemon from stopping."""
    from xendpy.config import XendConfig
    from xendpy.config_file import load

    try:
        return load(paths.config_file).config
    except ConfigError:
        return XendConfig()


def _say(text: str) -> None:
    print(f"xend: {text}", file=sys.stderr)
