"""The recorded streams as files, with the descriptions that came with them."""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path
from types import ModuleType
from typing import Any

DATA = Path(__file__).parent.parent / "data"

PV64 = "xend-4.4-pv64-live.relocation"
HVM = "xend-4.4-hvm-live.relocation"
PV32 = "libxc-4.1-pv32-nonlive.v1"


def stream(name: str) -> bytes:
    """Return a recorded stream."""
    return lzma.decompress((DATA / f"{name}.xz").read_bytes())


def description(name: str) -> dict[str, Any]:
    """Return what a recorded stream must decode to."""
    described: dict[str, Any] = json.loads((DATA / f"{Path(name).stem}.json").read_text())
    return described


def call(module: ModuleType, *argv: str | Path) -> int:
    """Run a command's module as `xm` does; return its exit code."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    code: int = module.run(parser.parse_args([str(word) for word in argv]))
    return code
