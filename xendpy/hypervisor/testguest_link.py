"""The daemon's end of a test guest's process: start it, find it again, command it, end it.

A socket's path may be longer than the 108 bytes of a sockaddr_un, so it is named through
/proc/self/fd.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xendpy.errors import HypervisorError
from xendpy.hypervisor.children import environment
from xendpy.hypervisor.testguest_process import MAX_MESSAGE

ANSWER_S = 10.0
START_S = 120.0  # a big guest that fills its memory first
END_S = 2.0
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


class GuestLink:
    """A connection to a living process. Serialised, `alive` excepted, which any thread may ask.

    `ram`, `dirty` and `kept` are file descriptors of this object.
    """

    def __init__(self, path: Path, connection: socket.socket, *, timeout_s: float) -> None:
        """Attach to the process that listens at `path`; owns `connection`.

        Raises:
            HypervisorError: it does not answer, or ended.
        """
        self.path = path
        self._connection = connection
        self._pidfd = -1
        try:
            answer, fds = self._ask({"do": "attach"}, timeout_s=timeout_s)
            self.ram, self.dirty, self.kept = fds
            self.pid = int(answer["pid"])
            self.state = str(answer["state"])
            self._pidfd = os.pidfd_open(self.pid)
        except (OSError, ValueError) as error:
            self.close()
            raise HypervisorError(f"{path.name}: {error}", operation="attach") from error

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        pidfd = self._pidfd
        return pidfd >= 0 and not _ended(pidfd, 0)

    def command(self, do: str, **arguments: str) -> dict[str, Any]:
        """Have the process do something, and return its answer.

        Raises:
            HypervisorError: it refuses, does not answer, or is gone.
        """
        return self._command({"do": do, **arguments})

    def keep(self, blob: bytes) -> None:
        """Leave `blob` with the process, in place of the one before: whole, or not at all."""
        fd = sealed(blob)
        try:
            self._command({"do": "keep"}, fd)
        finally:
            os.close(fd)

    def _command(self, request: dict[str, str], *fds: int) -> dict[str, Any]:
        try:
            answer, _ = self._ask(request, *fds, timeout_s=ANSWER_S)
        except OSError as error:
            raise HypervisorError(f"{self.path.name}: {error}", operation=request["do"]) from error
        self.state = str(answer["state"])
        if "error" in answer:
            raise HypervisorError(str(answer["error"]), operation=request["do"])
        return answer

    def _ask(
        self, request: dict[str, str], *fds: int, timeout_s: float
    ) -> tuple[dict[str, Any], list[int]]:
        flags = socket.MSG_CMSG_CLOEXEC
        self._connection.settimeout(timeout_s)
        try:
            socket.send_fds(self._connection, [json.dumps(request).encode()], fds)
            message, received, _, _ = socket.recv_fds(self._connection, MAX_MESSAGE, 3, flags)
        except TimeoutError:
            self._connection.close()  # a late answer would be taken for that of the next command
            raise
        if not message:
            raise ConnectionResetError("the process of the guest has ended")
        return json.loads(message), received

    @property
    def pidfd(self) -> int:
        """Readable when the process has ended; -1 after `close`."""
        return self._pidfd

    def end(self) -> None:
        """End the process, remove its socket and let go. May be called again."""
        self.kill()
        self.close()

    def kill(self) -> None:
        """End the process, gently or not, and remove its socket; its memory stays."""
        if self.alive:
            with contextlib.suppress(HypervisorError):
                self.command("end")
            if not _ended(self._pidfd, END_S):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                _ended(self._pidfd, END_S)
        forget(self.path)

    def close(self) -> None:
        """Let go of the process, which lives on. May be called again."""
        self._connection.close()
        for name in ("_pidfd", "ram", "dirty", "kept"):
            fd = getattr(self, name, -1)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)


def sealed(blob: bytes) -> int:
    """Return a memfd that holds `blob` for good; the caller closes it."""
    fd = os.memfd_create("xendpy-kept", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(blob)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def start(
    path: Path, fds: tuple[int, int, int], arguments: Sequence[str], launcher: Sequence[str]
) -> GuestLink:
    """Start a process that holds copies of `fds` (memory, dirty map, blob) and listens at `path`.

    Raises:
        HypervisorError: it did not come up.
    """
    forget(path)
    try:
        with _address(path) as address, socket.socket(*_KIND) as listener:
            listener.bind(address)
            listener.listen()
            _spawn(path, listener.fileno(), fds, arguments, launcher)
        link = connect(path, timeout_s=START_S)
    except subprocess.TimeoutExpired as error:
        forget(path)
        text = (
            f"the guest's process did not come up within {START_S:g} s: is this host overloaded?"
        )
        raise HypervisorError(text, operation="start") from error
    except (OSError, subprocess.SubprocessError) as error:
        forget(path)
        raise HypervisorError(f"{path.name}: {error}", operation="start") from error
    except HypervisorError as error:
        last = _log(path).read_text(errors="replace").strip().splitlines()[-1:]
        forget(path)
        raise HypervisorError(": ".join([error.reason, *last]), operation="start") from error
    if link is None:
        raise HypervisorError(f"{path.name}: the process did not come up", operation="start")
    return link


def connect(path: Path, *, timeout_s: float = ANSWER_S) -> GuestLink | None:
    """Return a link to the process that listens at `path`; None if there is none.

    Raises:
        HypervisorError: there is one, and it does not answer.
    """
    connection = socket.socket(*_KIND)
    try:
        with _address(path) as address:
            connection.connect(address)
    except (ConnectionRefusedError, FileNotFoundError):
        connection.close()
        return None
    return GuestLink(path, connection, timeout_s=timeout_s)


def forget(path: Path) -> None:
    """Remove what a process that is gone has left."""
    path.unlink(missing_ok=True)
    _log(path).unlink(missing_ok=True)


def default_launcher() -> tuple[str, ...]:
    """Return what to put before the command, so that a stop of the service leaves guests alone.

    Only where systemd started this daemon as a system service; a scope of its own takes the
    guest out of the service's control group. `systemd-run --scope` executes the command in its
    own place, so file descriptors pass through.
    """
    service = "INVOCATION_ID" in os.environ and os.getppid() == 1 and os.geteuid() == 0
    if service and Path("/run/systemd/system").is_dir():
        return ("systemd-run", "--scope", "--quiet", "--collect", "--slice=machine.slice")
    return ()


_KIND = (socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _spawn(
    path: Path,
    listener: int,
    fds: tuple[int, int, int],
    arguments: Sequence[str],
    launcher: Sequence[str],
) -> None:
    """Start the process, which forks itself away, and wait for the part that stays behind."""
    names = ("--listener", "--ram", "--dirty", "--kept")
    numbers = (listener, *fds)
    options = [item for pair in zip(names, map(str, numbers), strict=True) for item in pair]
    module = "xendpy.hypervisor.testguest_process"
    # One thread is all it uses: BLAS would start more, and cost memory.
    environ = environment() | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with _log(path).open("wb") as log:
        subprocess.run(
            [*launcher, sys.executable, "-P", "-m", module, *options, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=numbers,
            start_new_session=True,
            cwd="/",
            env=environ,
            timeout=START_S,
            check=True,
        )


def _log(path: Path) -> Path:
    return path.with_suffix(".log")


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def _ended(pidfd: int, timeout_s: float) -> bool:
    """Return whether a process has ended, at most `timeout_s` from here."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
