"""Going to the background, and telling from outside whether the daemon runs.

Spec: xen/xend/server/SrvDaemon.py of xend 4.4 for the pid file and for `start` that returns when
the listeners are open. xend looked for its name in the output of ps; /proc says it exactly.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from xendpy.paths import Paths

READY = b"\0"  # after it nothing more is said to whoever started us
START_DEADLINE_S = 120.0  # a store with many guests is examined before the listeners open
POLL_S = 0.05
PROGRAMS = {b"xend", b"xendpy", b"__main__.py", b"xend.py", b"xendpy.cli.xend"}
STARTERS = {b"start", b"restart", b"trace_start"}
COMM = "python"  # what lsof and ps show, as they showed it for xend


def running_pid(paths: Paths) -> int | None:
    """Return the pid of the daemon of this root, or None; a stale pid file is removed."""
    pid = recorded_pid(paths)
    if pid is None:
        return None
    if is_daemon(pid):
        return pid
    with suppress(OSError):
        paths.pid_file.unlink()
    return None


def recorded_pid(paths: Paths) -> int | None:
    """Return what the pid file says, or None if it is missing or says nothing sensible."""
    try:
        text = paths.pid_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() and int(text) > 1 else None


def is_daemon(pid: int) -> bool:
    """Say whether `pid` is a living daemon of ours; a pid is soon given to somebody else."""
    if pid == os.getpid():  # after a reboot the pid of a stale file may be this very command's
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    # A zombie has no words: it holds no port and no lock any more.
    names = {os.path.basename(word) for word in words}
    python = os.path.basename(words[0]).startswith(b"python")
    return python and bool(names & PROGRAMS) and bool(names & STARTERS)


def record_pid(paths: Paths) -> None:
    """Write this process's pid to the pid file: decimal, no newline, as xend wrote it.

    Done when the listeners are open: a second daemon, which fails before that, leaves the file
    of the first alone.
    """
    path = paths.pid_file
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(str(os.getpid()), encoding="ascii")
    fresh.rename(path)


def forget_pid(paths: Paths) -> None:
    """Remove the pid file if it is ours."""
    if recorded_pid(paths) == os.getpid():
        paths.pid_file.unlink(missing_ok=True)


def set_command_name() -> None:
    """Show as `python…` in lsof and ps, however we were started.

    A script started through its first line has the script's name otherwise.
    """
    with suppress(OSError):
        Path("/proc/self/comm").write_text(COMM, encoding="ascii")


def start_in_background(work: Callable[[Callable[[], None]], int], *, stderr_log: Path) -> int:
    """Run `work` in a daemon; return 0 once it has called its argument, else 1.

    Until then what it writes to standard error is passed on to ours, from then on it goes to
    `stderr_log`.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_daemon(work, writer, stderr_log)  # never returns
    os.close(writer)
    os.waitpid(child, 0)
    try:
        return _relay(reader)
    finally:
        os.close(reader)


def _become_daemon(
    work: Callable[[Callable[[], None]], int], writer: int, stderr_log: Path
) -> None:
    """Leave session, terminal and parent; run `work`; exit with its answer."""
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(writer, 2)
        os.close(writer)
        os.close(null)
        os.chdir("/")
        code = work(lambda: _say_ready(stderr_log))
    except Exception:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def _say_ready(stderr_log: Path) -> None:
    sys.stderr.flush()
    os.write(2, READY)
    try:
        stderr_log.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(stderr_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 2)
    os.close(log)


def _relay(reader: int) -> int:
    """Pass on what the daemon says until it is ready or gone."""
    end = time.monotonic() + START_DEADLINE_S
    while True:
        left = max(0.0, end - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            print(f"xend is not ready after {START_DEADLINE_S:g} s", file=sys.stderr)
            return 1
        said, ready, _ = os.read(reader, 65536).partition(READY)
        sys.stderr.write(said.decode("utf-8", "replace"))
        sys.stderr.flush()
        if ready:
            return 0
        if not said:
            return 1


def stop(pid: int, *, deadline_s: float) -> bool:
    """Ask the daemon to stop and wait until it is gone; say whether it is.

    Raises:
        PermissionError: it is not ours to stop.
    """
    try:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)  # one that is stopped by a signal learns of it only then
    except ProcessLookupError:
        return True
    return wait_until_gone(pid, deadline_s=deadline_s)


def wait_until_gone(pid: int, *, deadline_s: float) -> bool:
    """Wait for the daemon's end; say whether it came."""
    end = time.monotonic() + deadline_s
    while is_daemon(pid):
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)
    return True
