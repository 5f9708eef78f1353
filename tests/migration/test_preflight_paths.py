"""What a peer's configuration can make this host open: nothing but files and block devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import streams
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.migration.preflight import Facts, bridges, check_target, disk_identity
from xendpy.paths import Paths


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


@pytest.mark.parametrize("devices", [True, False])
def test_nothing_is_told_of_a_disk_that_no_guest_may_have(tmp_path: Path, devices: bool) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "link").symlink_to("/etc/passwd")
    (images / "own").write_bytes(b"x" * 700)
    paths = ("/etc/passwd", "/dev/fd/../root/etc/passwd", f"{images}/link", "/etc/not-there")
    named = [f"(device (vbd (uname file:{path}) (dev xvda)))" for path in (*paths, images / "own")]
    config = DomainConfig.parse(streams.config(extra=" ".join(named)))
    rules = GuestRules(guest_paths=(str(images), "/dev"))
    store = StoreHypervisor(Paths(tmp_path), rules=rules)
    facts = Facts(disks={path: {"size": 1} for path in (*paths, f"{images}/own")})
    checks = check_target(config, facts, store, devices=devices)
    store.close()
    *others, own = [check for check in checks if check.name == "disk"]
    assert [check.detail for check in others] == [
        f"{path} is none that a guest may have: see xendpy-guest-paths" for path in paths
    ]
    assert "not the same storage" in own.detail and "700" in own.detail


def test_only_bridges_of_linux_are_looked_for(tmp_path: Path) -> None:
    scripts = ("", "vif-bridge", "/etc/xen/scripts/vif-route", "vif-openvswitch", "own")
    vifs = [
        f"(device (vif (bridge br{number}) (script {script or chr(39) * 2})))"
        for number, script in enumerate(scripts)
    ]
    config = DomainConfig.parse(streams.config(extra=" ".join(vifs)))
    named = [name for name in bridges(config) if name != "xenbr0"]
    assert named == ["br0", "br1", "br4"]


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
