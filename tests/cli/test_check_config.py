"""`xend check-config`: values, origins, warnings, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from xendpy.cli.check_config import check_environment, run
from xendpy.paths import Paths


def paths(root: Path, text: str) -> Paths:
    chosen = Paths(root)
    chosen.config_file.parent.mkdir(parents=True)
    chosen.config_file.write_text(text)
    return chosen


def test_every_option_is_listed_with_its_origin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "# c\n(xend-relocation-port 8010)\n(xendpy-peer b (port 1))\n"
    assert run(paths(tmp_path, text)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("(xend-relocation-port 8010)") and line.endswith("# line 2")
        for line in lines
    )
    assert any(
        line.startswith("(xend-relocation-server no)") and line.endswith("# default")
        for line in lines
    )
    assert "(xendpy-peer b (address b) (port 1) (release '4.2+'))" in lines


def test_a_bad_file_exits_78_and_names_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = paths(tmp_path, "\n(xend-relocation-port x)\n")
    assert run(chosen) == 78
    assert f"Error: {chosen.config_file}:2: xend-relocation-port: " in capsys.readouterr().err


def test_warnings_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(paths(tmp_path, "(xend-relocation-server yes)\n(oops 1)\n")) == 0
    err = capsys.readouterr().err
    assert "xend-config.sxp:2: unknown option oops" in err
    assert "every host" in err


def test_a_state_directory_on_nfs_or_exported_is_warned_about(tmp_path: Path) -> None:
    mounts, exports = tmp_path / "mounts", tmp_path / "exports"
    mounts.write_text("/dev/sda / ext4 rw 0 0\nfiler:/x /var/lib/xend nfs4 rw 0 0\n")
    exports.write_text("# all\n/srv *(rw)\n/var/lib *(rw,async)\n")
    texts = [item.text for item in check_environment(Paths(), mounts=mounts, exports=exports)]
    assert len(texts) == 2
    assert "network file system (nfs4)" in texts[0]
    assert "inside /var/lib, which" in texts[1]


def test_an_ordinary_state_directory_is_fine(tmp_path: Path) -> None:
    mounts, exports = tmp_path / "mounts", tmp_path / "exports"
    mounts.write_text("/dev/sda / ext4 rw 0 0\nfiler:/x /var/lib/xendother nfs4 rw 0 0\n")
    exports.write_text("/var/lib/xen-images *(rw)\n")
    assert not check_environment(Paths(), mounts=mounts, exports=exports)
