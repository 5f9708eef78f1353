"""A directory as libvirt's storage pool."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pool:
    """A directory as a pool."""

    name: str
    uuid: str
    path: Path
    active: bool = False

    def volumes(self) -> list[str]:
        """Return the names of the files in it."""
        try:
            return sorted(item.name for item in os.scandir(self.path) if item.is_file())
        except OSError:
            return []
