"""Who starts and stops the daemon where systemd has a unit for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from xendpy.cli import daemon, stopping, unit, xend
from xendpy.paths import Paths

HOST = Paths(Path("/"))
OURS = "0::/system.slice/xend.service\n"
OTHER = "0::/user.slice/user-0.slice/session-1.scope\n"
SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$0.said"
exit 0
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A host with systemd and the unit; what systemctl was told is the value's."""
    for name in ("NOTIFY_SOCKET", "XEND_DAEMONIZE", "XEND_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(SYSTEMCTL)
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(unit, "BOOTED", tmp_path)
    monkeypatch.setattr(unit, "PLACES", (tmp_path / "etc", tmp_path / "lib"))
    monkeypatch.setattr(unit, "PROC", tmp_path / "proc")
    monkeypatch.setattr(daemon, "running_pid", lambda paths: None)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/xend.service").touch()
    group(tmp_path, "self", OTHER)

    def said() -> list[str]:
        file = tmp_path / "systemctl.said"
        return file.read_text().splitlines() if file.exists() else []

    return said


def group(place: Path, pid: str, text: str) -> None:
    (place / "proc" / pid).mkdir(parents=True, exist_ok=True)
    (place / "proc" / pid / "cgroup").write_text(text)


def test_start_by_hand_is_systemds(asked: Callable[[], list[str]]) -> None:
    assert xend.start(HOST, foreground=False) == 0
    assert asked() == ["start xend.service"]


def test_failed_start_says_where_the_reason_is(
    asked: Callable[[], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "systemctl").write_text("#!/bin/sh\nexit 1\n")
    assert xend.start(HOST, foreground=False) == 1
    assert "journalctl -u xend.service" in capsys.readouterr().err


@pytest.mark.usefixtures("asked")
def test_unit_itself_and_other_daemons_are_started_directly(tmp_path: Path) -> None:
    assert unit.is_in_charge(HOST, {})
    assert not unit.is_in_charge(Paths(tmp_path), {})
    assert not unit.is_in_charge(Paths(Path("/"), tmp_path / "other.sxp"), {})
    assert not unit.is_in_charge(HOST, {"NOTIFY_SOCKET": "/run/systemd/notify"})
    group(tmp_path, "self", f"1:name=systemd:/\n{OURS}")
    assert not unit.is_in_charge(HOST, {})


@pytest.mark.usefixtures("asked")
def test_hosts_on_which_there_is_no_such_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/xend.service").symlink_to("/dev/null")  # masked
    assert not unit.is_in_charge(HOST, {})
    (tmp_path / "etc/xend.service").unlink()
    assert unit.is_in_charge(HOST, {})
    (tmp_path / "lib/xend.service").unlink()
    assert not unit.is_in_charge(HOST, {})
    (tmp_path / "lib/xend.service").touch()
    monkeypatch.setattr(unit, "BOOTED", tmp_path / "none")
    assert not unit.is_in_charge(HOST, {})


def test_daemon_of_the_unit_is_stopped_by_systemd(
    asked: Callable[[], list[str]], tmp_path: Path
) -> None:
    group(tmp_path, "4711", OURS)
    stopping.stop(Paths(tmp_path), 4711, force=False)
    assert asked() == ["stop xend.service"]


def test_daemon_in_the_foreground_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(daemon, "running_pid", lambda paths: 4711)
    assert xend.start(HOST, foreground=True) == 1
    assert "a daemon runs already, pid 4711" in capsys.readouterr().err
    assert xend.start(HOST, foreground=False) == 0
