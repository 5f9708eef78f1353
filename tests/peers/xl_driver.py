"""The xl driver on an xl that is a fake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.peers.fake_xl import FakeXl
from xendpy.hypervisor.xl import XlHypervisor
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.paths import Paths


def driver(root: Path, xl: FakeXl, **rules: Any) -> XlHypervisor:
    """Return the xl driver on a fake xl; every path of a configuration exists."""
    said = {"guest_paths": ("/boot",), "exists": lambda path: True, **rules}
    return XlHypervisor(Paths(root), tool=xl, rules=GuestRules(**said))


def incoming(root: Path) -> list[str]:
    """Return the names of what that driver keeps of guests from old senders."""
    return sorted(path.name for path in (root / "var/lib/xend/incoming").glob("*"))
