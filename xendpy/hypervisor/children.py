"""What a Python process that the daemon starts gets of its environment: next to nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import xendpy

INHERITED = ("PATH", "LANG", "LC_ALL", "TZ")


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return where programs, words and times are, and where this very package is found."""
    kept = {name: environ[name] for name in INHERITED if name in environ}
    return {**kept, "PYTHONPATH": str(Path(xendpy.__file__).parents[1])}
