"""What a peer's configuration can make this host open: nothing but files and block devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xendpy.migration.preflight import Facts, disk_identity


def test_a_file_is_told_by_inode_and_size(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(b"x" * 700)
    assert disk_identity(str(file)) == {"size": 700, "inode": file.stat().st_ino}


@pytest.mark.timeout(40)
def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opening it would block for ever
    for path in (str(pipe), "/dev/null", str(tmp_path), str(tmp_path / "none"), "a\0b", ""):
        assert disk_identity(path) == {}


@pytest.mark.parametrize(
    ("said", "facts"),
    [
        ({"clock_s": 10**400, "uptime_s": float("nan")}, Facts()),
        ({"clock_s": float("inf"), "host": "h" * 999}, Facts(host="h" * 255)),
        ({"disks": {"/a": 5, "/b": {"size": 1}}}, Facts(disks={"/b": {"size": 1}})),
        ({"disks": [1]}, Facts()),
        ("nothing", Facts()),
    ],
    ids=str,
)
def test_odd_facts_count_as_not_said(said: object, facts: Facts) -> None:
    assert Facts.parse(said) == facts
