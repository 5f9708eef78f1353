"""Where the lab is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """Return the directory outside of the source tree: XENDPY_LAB, else in the user's cache."""
    return Path(os.environ.get("XENDPY_LAB") or "~/.cache/xendpy-lab").expanduser().absolute()
