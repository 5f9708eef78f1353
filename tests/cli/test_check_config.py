"""`xend check-config`: values, origins, warnings, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from xendpy.cli.check_config import check_environment, run
from xendpy.config_file import load
from xendpy.paths import Paths


def paths(root: Path, text: str) -> Paths:
    chosen = Paths(root)
    chosen.config_file.parent.mkdir(parents=True)
    chosen.config_file.write_text(text)
    return chosen


def test_every_option_is_listed_with_its_origin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "# c\n(xend-relocation-port 8010)\n(xendpy-peer b (port 1))\n(xendpy-map-disk /a /b)\n"
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
    assert "(xendpy-peer b (address b) (port 1) (release '4.2+') (tools 64))" in lines
    assert lines.count("(xendpy-map-disk /a /b)") == 1


def test_a_bad_file_exits_78_and_names_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = paths(tmp_path, "\n(xend-relocation-port x)\n")
    assert run(chosen) == 78
    assert f"Error: {chosen.config_file}:2: xend-relocation-port: " in capsys.readouterr().err


def test_a_password_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(paths(tmp_path, "(vncpasswd s3cret)\n")) == 0
    out = capsys.readouterr().out
    assert "(vncpasswd (hidden))" in out and "s3cret" not in out


def test_what_is_listed_is_a_configuration_of_the_same_meaning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "(xen-api-server ((9363 pam '^a$ ^b\\\\.c$')))"
        "(xend-relocation-hosts-allow '^x\\\\.y$ ^z$')"
        "(xendpy-stall-timeout 2.5)(xend-address '\xe9\\n')"
        "(xendpy-peer p (address 192.0.2.1) (tools 32))"
    )
    chosen = paths(tmp_path, text)
    before = load(chosen.config_file)
    assert run(chosen) == 0
    chosen.config_file.write_text(capsys.readouterr().out)
    assert load(chosen.config_file).config == before.config


def test_a_missing_file_is_all_defaults_and_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Paths(tmp_path)) == 0
    said = capsys.readouterr()
    assert all(line.endswith("# default") for line in said.out.splitlines()[1:])
    assert "does not exist" in said.err


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


def test_a_link_to_a_network_file_system_is_seen_through(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    away = tmp_path / "a way"
    (away / "xend").mkdir(parents=True)
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/xend").symlink_to(away / "xend")
    point = str(away).replace(" ", "\\040")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\n\nfiler:/x {point} nfs rw 0 0\n")
    found = check_environment(Paths(tmp_path), mounts=mounts, exports=tmp_path / "none")
    assert [item.text.split(":")[0] for item in found] == [
        f"{away}/xend is on a network file system (nfs)"
    ]


def test_an_ordinary_state_directory_is_fine(tmp_path: Path) -> None:
    mounts, exports = tmp_path / "mounts", tmp_path / "exports"
    mounts.write_text("/dev/sda / ext4 rw 0 0\nfiler:/x /var/lib/xendother nfs4 rw 0 0\n")
    exports.write_text("/var/lib/xen-images *(rw)\n")
    assert not check_environment(Paths(), mounts=mounts, exports=exports)
