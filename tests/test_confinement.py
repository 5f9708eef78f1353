"""How much of the host the units leave to the daemon, by systemd's own measure."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parent.parent / "systemd"
LIMITS = {"store": 2.0, "xl": 7.0}


def exposure(tmp_path: Path, *, store: bool) -> float:
    unit = tmp_path / "xend.service"
    parts = [(UNITS / "xend.service").read_text()]
    if store:
        parts.append((UNITS / "unprivileged.conf").read_text())
    text = re.sub("@[A-Z]+DIR@", "/usr/lib/xendpy", "\n".join(parts))
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    found = re.search(r"Overall exposure level for xend\.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert "Unknown" not in done.stderr and "Failed to parse" not in done.stderr, done.stderr
    return float(found[1])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("mode", LIMITS)
def test_the_units_confine_the_daemon(mode: str, tmp_path: Path) -> None:
    assert exposure(tmp_path, store=mode == "store") <= LIMITS[mode]


def test_the_unit_leaves_proc_xen_where_it_is() -> None:
    # systemd.exec(5): these imply MountAPIVFS=, a fresh /proc without the mount of /proc/xen.
    own_proc = "MountAPIVFS|RootDirectory|RootImage|ProcSubset|ProtectProc|ProtectControlGroups"
    text = (UNITS / "xend.service").read_text()
    assert not re.findall(rf"(?m)^(?:{own_proc}|ProtectKernelTunables)=.*", text)


def test_descriptors_suffice_for_the_connections_that_are_allowed() -> None:
    limit = re.search(r"(?m)^LimitNOFILE=(\d+)$", (UNITS / "xend.service").read_text())
    assert limit and int(limit[1]) >= 4096
