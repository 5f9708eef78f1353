"""Starts daemons and their guests without waiting for Python to import everything again.

A process that has imported all of it forks for each: hundreds of daemons are killed and started
again by the soak, and on a slow machine their imports would take most of its time.

    python -m tests.peers.nursery SOCKET

One request a connection, a JSON object with file descriptors: {"daemon": ROOT} with the file for
its output, answered {"pid": N}; {"guest": ARGUMENTS} with the four of the guest's process and its
log, answered when the guest listens; {"wait": PID}, answered {"status": N} with the negative
number of a signal, null while it lives.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from xendpy.hypervisor import testguest_link, testguest_process

PROJECT = Path(__file__).parents[2]
KIND = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
MAX_MESSAGE = 65536
MAX_FDS = 8
TIMEOUT_S = 300.0


class Child:
    """One daemon; as much of subprocess.Popen as a test needs."""

    def __init__(self, nursery: Path, pid: int) -> None:
        self._nursery = nursery
        self._pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = ask(self._nursery, {"wait": self._pid})["status"]
        return self.returncode

    def kill(self) -> None:
        # The nursery has not reaped it before `poll` says so: the number is still its own.
        if self.poll() is None:
            os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> None:
        """Return when it has ended."""
        if self.poll() is None:
            handle = os.pidfd_open(self._pid)
            try:
                testguest_link._ended(handle, TIMEOUT_S)
            finally:
                os.close(handle)
        assert self.poll() is not None, "the daemon does not end"


def start_daemon(root: Path, output: int) -> Child:
    """Start a crashing daemon, whose output goes to that file descriptor."""
    nursery = shared()
    return Child(nursery, int(ask(nursery, {"daemon": str(root)}, [output])["pid"]))


@cache
def shared() -> Path:
    """Start this process's own nursery, and return where it listens."""
    directory = tempfile.TemporaryDirectory(prefix="xendpy-nursery-")
    path = Path(directory.name) / "socket"
    with socket.socket(*KIND) as listener:
        listener.bind(str(path))
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(path), str(listener.fileno())],
            cwd=PROJECT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            pass_fds=[listener.fileno()],
        )
    atexit.register(directory.cleanup)
    atexit.register(process.kill)
    return path


def ask(nursery: Path, request: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
    """Send one request, and return its answer."""
    with socket.socket(*KIND) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(nursery))
        socket.send_fds(connection, [json.dumps(request).encode()], fds)
        answer: dict[str, Any] = json.loads(connection.recv(MAX_MESSAGE))
        return answer


def serve(path: Path, listener: socket.socket) -> None:
    """Answer requests, one at a time, for ever."""
    while True:
        connection, _ = listener.accept()
        with connection:
            data, fds, _, _ = socket.recv_fds(connection, MAX_MESSAGE, MAX_FDS)
            if data:
                connection.send(json.dumps(_answer(path, json.loads(data), fds)).encode())
            for fd in fds:
                os.close(fd)


def _answer(path: Path, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    if "wait" in request:
        pid, status = os.waitpid(request["wait"], os.WNOHANG)
        return {"status": os.waitstatus_to_exitcode(status) if pid else None}
    if "guest" in request:
        *numbers, log = fds
        arguments = [*_options(numbers), *request["guest"]]
        pid = _fork(lambda: testguest_process.main(arguments), log, fds)
        return {"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}
    return {"pid": _fork(lambda: _daemon(path, Path(request["daemon"])), fds[0], fds)}


def _daemon(path: Path, root: Path) -> None:
    from tests.peers import crashing_daemon

    def spawn(
        guest: Path, listener: int, fds: tuple[int, int, int], arguments: Sequence[str], _: Any
    ) -> None:
        with guest.with_suffix(".log").open("wb") as log:
            wanted = {"guest": list(arguments)}
            status = ask(path, wanted, [listener, *fds, log.fileno()])["status"]
        if status:
            raise subprocess.SubprocessError(f"the guest's process exited with {status}")

    testguest_link._spawn = spawn
    os._exit(crashing_daemon.run(root))


def _options(numbers: Sequence[int]) -> list[str]:
    names = ("--listener", "--ram", "--dirty", "--kept")
    return [item for pair in zip(names, map(str, numbers), strict=True) for item in pair]


def _fork(act: Callable[[], None], output: int, fds: Sequence[int]) -> int:
    """Do something in a process of its own, with nothing open but `fds`; return its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in (1, 2):
            os.dup2(output, number)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in fds:
                with suppress(OSError):  # the one of the listing itself
                    os.close(int(name))
        act()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def main() -> None:
    """Be the nursery."""
    import_module("xendpy.control.service")
    import_module("tests.peers.crashing_daemon")
    with socket.socket(fileno=int(sys.argv[2])) as listener:
        serve(Path(sys.argv[1]), listener)


if __name__ == "__main__":
    main()
