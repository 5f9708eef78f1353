"""One daemon per state directory, and the name by which that directory is known to peers."""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from pathlib import Path

from xendpy.errors import HypervisorUnavailable
from xendpy.hypervisor.durable import Durable

LOCK_FILE = "lock"
HOST_ID_FILE = "host-id"
HOST_ID_PATTERN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class StateLock:
    """The lock on a state directory; the system drops it when the process ends, however."""

    def __init__(self, state_dir: Path) -> None:
        """Take the lock.

        Raises:
            HypervisorUnavailable: another process has it; the text names its pid.
        """
        self._fd = os.open(state_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            self.release()
            raise HypervisorUnavailable(
                f"{state_dir} is in use by another daemon, pid {holder}"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Let another daemon in. May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def host_id(state_dir: Path, durable: Durable) -> str:
    """Return the uuid of this state directory, made at the first call and kept for ever.

    The caller holds the lock.

    Raises:
        HypervisorUnavailable: the file holds something else; it is never replaced silently,
            because peers settle the ownership of guests by it.
    """
    path = state_dir / HOST_ID_FILE
    try:
        text = path.read_text("ascii", errors="replace").strip()
    except FileNotFoundError:
        text = str(uuid.uuid4())
        durable.write_file(path, f"{text}\n".encode("ascii"))
    if not HOST_ID_PATTERN.fullmatch(text):
        raise HypervisorUnavailable(f"{path} does not hold a uuid")
    return text
