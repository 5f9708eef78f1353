"""What a guest has printed, from the log that xenconsoled keeps.

Source: xenconsoled's `--log=guest`, which Debian's xen package and most others turn on.
"""

from __future__ import annotations

import os
from pathlib import Path

from xendpy.errors import Unsupported

LOG_DIR = Path("/var/log/xen/console")  # xenconsoled's, whatever root this daemon has
TAIL_BYTES = 64 << 10


class Console:
    """One guest's log."""

    def __init__(self, name: str, directory: Path = LOG_DIR) -> None:
        self._path = directory / f"guest-{name}.log"

    def console(self) -> bytes:
        """Return the last 64 KiB.

        Raises:
            Unsupported: xenconsoled keeps no log.
        """
        try:
            with open(self._path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                return file.read(TAIL_BYTES)
        except OSError as error:
            raise Unsupported(
                f"{self._path}: {error.strerror}; xenconsoled writes it where it is started with"
                " --log=guest",
                operation="console",
            ) from error
