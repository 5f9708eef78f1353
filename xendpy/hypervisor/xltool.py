"""The one seam to `xl`: everything that runs it goes through here, and tests stand here.

No shell; the arguments are a list, the environment is fixed, every call has a deadline. A child
is the leader of its own process group: when it fails, the whole group goes. What xl leaves behind
after a success, its monitor and a device model, has left that group by then and is not touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from xendpy.errors import HypervisorError, HypervisorUnavailable, ToolstackError

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/root"}
QUICK_S = 60.0
STDERR_BYTES = 16 << 10
GRACE_S = 2.0  # between SIGTERM and SIGKILL
# What xl says as it goes along, and while it tidies up; the cause stands between.
CHATTER = (": progress: ", ": info: ", "Saving to ", "Loading new save file ")
AFTERMATH = ("Non-existant domain", "Unable to destroy guest", "Destruction of domain failed")


class Child(Protocol):
    """A running xl."""

    def wait(self, timeout_s: float) -> None:
        """Wait for its success.

        Raises:
            ToolstackError: it failed; its group is gone.
            HypervisorError: it took longer; its group is gone.
        """
        ...

    def kill(self) -> None:
        """End it and its group. Any thread; also after its end, then nothing happens."""
        ...

    @property
    def running(self) -> bool: ...


class Tool(Protocol):
    """Something that does what xl does."""

    def run(self, args: Sequence[str], *, timeout_s: float = QUICK_S) -> str:
        """Run `xl ARGS` to its end and return what it prints; errors as `Child.wait`."""
        ...

    def start(
        self,
        args: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        """Start `xl ARGS` on open descriptors, which the caller closes here afterwards."""
        ...

    def resume(self, domid: int) -> None:
        """Let a guest go on that was suspended; errors as `Child.wait`."""
        ...


class XlTool:
    """The real one."""

    def __init__(self, program: str = "xl") -> None:
        """Find the program.

        Raises:
            HypervisorUnavailable: it is not installed.
        """
        path = shutil.which(program, path=ENVIRONMENT["PATH"])
        if path is None:
            raise HypervisorUnavailable(f"{program} is not installed")
        self._path = path

    def run(self, args: Sequence[str], *, timeout_s: float = QUICK_S) -> str:
        """Run xl; see Tool."""
        return _run(self._path, ["xl", *args], timeout_s)

    def resume(self, domid: int) -> None:
        """Resume a guest through libxl; see Tool."""
        program = Path(__file__).with_name("xlresume.py")
        _run(sys.executable, [sys.executable, "-P", str(program), str(domid)], QUICK_S)

    def start(
        self,
        args: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        """Start xl; see Tool."""
        argv = ["xl", *args]
        # A file and no pipe: the monitor that stays behind may keep it open for ever.
        stderr = os.memfd_create("xl-stderr", os.MFD_CLOEXEC)
        out = subprocess.DEVNULL if stdout is None else stdout
        try:
            process = _started(
                self._path, argv, out=out, err=stderr, stdin=stdin, pass_fds=pass_fds
            )
        except BaseException:
            os.close(stderr)
            raise
        return _XlChild(argv, process, stderr)


def _run(path: str, argv: list[str], timeout_s: float) -> str:
    with _started(path, argv, out=subprocess.PIPE, err=subprocess.PIPE) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            raise _too_late(argv, timeout_s) from None
        except BaseException:
            _kill_group(process)
            raise
    if process.returncode:
        text = err.decode("utf-8", "replace")[-STDERR_BYTES:]
        raise failure(argv, process.returncode, text)
    return bytes(out).decode("utf-8", "replace")


def _started(
    path: str,
    argv: list[str],
    *,
    out: int,
    err: int,
    stdin: int | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            executable=path,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=out,
            stderr=err,
            env=ENVIRONMENT,
            cwd="/",
            close_fds=True,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    except OSError as error:
        raise HypervisorError(f"{path}: {error.strerror}", operation="xl") from error


class _XlChild:
    def __init__(self, argv: list[str], process: subprocess.Popen[bytes], stderr: int) -> None:
        self._argv = argv
        self._process = process
        self._stderr = stderr

    def __del__(self) -> None:
        os.close(self._stderr)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout_s: float) -> None:
        """Wait for its success; see Child."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise _too_late(self._argv, timeout_s) from None
        if status:
            self.kill()
            raise failure(self._argv, status, _tail(self._stderr))

    def kill(self) -> None:
        """End it and its group."""
        if self._process.returncode != 0:
            _kill_group(self._process)


def _tail(fd: int) -> str:
    size = os.fstat(fd).st_size
    data = os.pread(fd, STDERR_BYTES, max(0, size - STDERR_BYTES))
    return data.decode("utf-8", "replace")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def failure(argv: Sequence[str], status: int, stderr: str) -> ToolstackError:
    """Return the error of a failed xl, its most telling line last."""
    lines = [
        line
        for line in stderr.splitlines()
        if line.strip() and not any(text in line for text in CHATTER)
    ]
    errors = [
        line
        for line in lines
        if "error" in line.lower() and not any(text in line for text in AFTERMATH)
    ]
    told = [*lines, *errors[:1]] if errors else lines
    return ToolstackError(argv, status=status, stderr="\n".join(told))


def _too_late(argv: Sequence[str], timeout_s: float) -> HypervisorError:
    return HypervisorError(f"{' '.join(argv)} took longer than {timeout_s:g} s", operation="xl")
