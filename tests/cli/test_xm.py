"""Every command of xm: command line and the daemon's answers → stdout, stderr, exit code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_xend import FakeXend, fault
from tests.cli.xm_cases import (
    ALL,
    CASES,
    DOMAIN_0,
    HEADER,
    LEGACY_PV,
    ROW_0,
    ROW_1,
    ROW_SPARE,
    Case,
)
from xendpy.cli import lifecycle, listing, xm
from xendpy.cli.commands import COMMANDS
from xendpy.cli.domains import child_value


@pytest.mark.parametrize("case", CASES, ids=attrgetter("id"))
def test_command(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeXend(tmp_path / "var/run/xend/xmlrpc.sock", case.replies) as fake:
        code = xm.main(["--root", str(tmp_path), *case.argv.split()])
    said = capsys.readouterr()
    usage = xm.usage_text(COMMANDS[case.usage]) if case.usage else ""
    assert said.err == case.err
    assert said.out == case.out + usage
    assert code == case.code
    if case.calls is not None:
        assert [(name, *params) for name, params in fake.calls] == list(case.calls)


def test_every_command_has_a_case_or_a_test_of_its_own() -> None:
    tested = {found.name for case in CASES if (found := xm.find_command(case.argv.split()[0]))}
    elsewhere = {"save", "restore", "create", "new", "console", "top", "convert"}
    assert set(COMMANDS) - tested == elsewhere - tested


def run(root: Path, *argv: str, replies: Mapping[str, Any] | None = None) -> tuple[int, Any]:
    with FakeXend(root / "var/run/xend/xmlrpc.sock", replies or {}) as fake:
        code = xm.main([*argv, "--root", str(root)])
    return code, fake.calls


def test_save_sends_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, sent = run(tmp_path, "save", "-c", "a", "a.save", replies={"xend.domain.save": None})
    assert (code, sent) == (0, [("xend.domain.save", ("a", str(tmp_path / "a.save"), True))])


def test_restore_sends_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.save").write_bytes(b"LinuxGuestRecord")
    replies = {"xend.domain.restore": LEGACY_PV}
    code, sent = run(tmp_path, "restore", "a.save", "-p", replies=replies)
    assert (code, sent) == (0, [("xend.domain.restore", (str(tmp_path / "a.save"), True))])


def test_reboot_waits_for_the_next_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "POLL_S", 0.0)
    counts = iter([4, 4, 5])
    replies = {
        "xend.domain": LEGACY_PV,
        "xend.domain.getRestartCount": lambda _: next(counts),
        "xend.domain.shutdown": None,
        "xend.domains": ["Domain-0", "legacy-pv"],
    }
    assert run(tmp_path, "reboot", "-w", "legacy-pv", replies=replies)[0] == 0
    assert capsys.readouterr().out == "Domain legacy-pv rebooted\nAll domains rebooted\n"
    assert next(counts, None) is None


def test_reboot_by_xl_is_seen_by_the_new_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "POLL_S", 0.0)
    domid = child_value(LEGACY_PV, "domid")
    again = [item if item[0] != "domid" else ["domid", domid + 1] for item in LEGACY_PV[1:]]
    looks = iter([LEGACY_PV, LEGACY_PV, ["domain", *again]])
    names = iter([["Domain-0", "legacy-pv"], ["Domain-0"], ["Domain-0", "legacy-pv"]])
    replies = {
        "xend.domain": lambda _: next(looks),
        "xend.domain.getRestartCount": "0",
        "xend.domain.shutdown": None,
        "xend.domains": lambda _: next(names),
    }
    code, sent = run(tmp_path, "reboot", "-w", str(domid), replies=replies)
    assert code == 0
    assert capsys.readouterr().out == f"Domain {domid} rebooted\nAll domains rebooted\n"
    assert sent[-1] == ("xend.domain", ("legacy-pv",))


def test_reboot_that_does_not_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "REBOOT_GAP_S", 0.0)
    replies = {
        "xend.domain": LEGACY_PV,
        "xend.domain.getRestartCount": "0",
        "xend.domain.shutdown": None,
        "xend.domains": ["Domain-0"],
    }
    run(tmp_path, "reboot", "-w", "legacy-pv", replies=replies)
    assert "Domain legacy-pv destroyed for failed in rebooting\n" in capsys.readouterr().out


def test_shutdown_of_all_goes_on_behind_one_that_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(domain: str, reason: str) -> None:
        if domain == "resting":
            raise fault(2, "it only rests")

    names = iter([["Domain-0", "resting", "legacy-pv"], ["Domain-0", "resting"]])
    replies = {
        "xend.domain": LEGACY_PV,
        "xend.domain.getRestartCount": "0",
        "xend.domain.shutdown": end,
        "xend.domains": lambda _: next(names),
    }
    code, sent = run(tmp_path, "shutdown", "-aw", replies=replies)
    asked = [params[0] for name, params in sent if name == "xend.domain.shutdown"]
    assert (code, asked) == (1, ["resting", "legacy-pv"])
    said = capsys.readouterr()
    assert said.err == "Error: it only rests\n"
    assert said.out == "Domain legacy-pv terminated\nAll domains terminated\n"


def test_info_config_lists_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "etc/xen/xend-config.sxp"
    config.parent.mkdir(parents=True)
    config.write_text("# c\n(xend-relocation-port 8002)\n(xend-relocation-server)\n")
    assert xm.main(["--root", str(tmp_path), "info", "-c"]) == 0
    assert capsys.readouterr().out == (
        "xend-relocation-port                  : 8002\n"
        "xend-relocation-server                : (none)\n"
    )


SPANS = [
    (0, " 0:00:00"),
    (3937, " 1:05:37"),
    (86399, "23:59:59"),
    (86400, "1 day,  0:00:00"),
    (2 * 86400 + 11045, "2 days,  3:04:05"),
]


@pytest.mark.parametrize(("seconds", "text"), SPANS)
def test_uptime_columns(seconds: int, text: str) -> None:
    assert listing.span(seconds) == text


def test_uptime_of_domain_0_is_the_hosts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = float(Path("/proc/uptime").read_text().split()[0])
    run(tmp_path, "uptime", "0", replies={"xend.domain": DOMAIN_0})
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("Domain-0                             0 ")
    hours, minutes, seconds = line.rpartition(" ")[2].split(":")
    shown = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    assert shown >= int(before) % 86400 or before >= 86400


def test_help_is_the_long_list(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help"], ["--help"], ["-h"]):
        assert xm.main(words) == 0
        out = capsys.readouterr().out
        assert out.startswith(
            "Usage: xm <subcommand> [args]\n\n"
            "Control, list, and manipulate Xen guest instances.\n\n"
            "xm full list of subcommands:\n\n"
            " console              Attach to <Domain>'s console.                     \n"
        )
        assert out.endswith("see the xmdomain.cfg(5)  man page.\n\n")
        assert all(f"\n {name} " in out for name in COMMANDS)


def test_no_command_is_the_short_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert xm.main([]) == 1
    out = capsys.readouterr().out
    assert "\nCommon 'xm' commands:\n\n console " in out
    assert out.endswith("\nFor a complete list of subcommands run 'xm help'.\n")


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert xm.main(["frobnicate"]) == 1
    said = capsys.readouterr()
    assert said.err == "Error: Subcommand frobnicate not found!\n"
    assert said.out == xm.help_text(short=True)


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert xm.main(["restore", "--help"]) == 1
    assert capsys.readouterr().out == (
        "Usage: xm restore <CheckpointFile> [-p]\n\n"
        "Restore a domain from a saved state.\n"
        "  -p, --paused                   Leave the domain paused                    \n"
        "  --force                        Although it was moved to another host      \n\n"
    )


def test_help_of_migrate_is_an_option_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert xm.main(["migrate", "-h"]) == 1
    assert capsys.readouterr().out.startswith(
        "Usage: xm migrate <Domain> <Host>\n\n"
        "Migrate a domain to another machine.\n\n"
        "Options:\n\n"
        "-h, --help           Print this help.\n"
        "-l, --live           Use live migration.\n"
    )


PREFIXES = [
    ("des", "destroy"),
    ("in", "info"),  # our own inspect gives way
    ("mig", "migrate"),  # and so does migrations
    ("migrations", "migrations"),
    ("ins", "inspect"),
    ("l", None),
    ("re", None),
    ("zz", None),
]


@pytest.mark.parametrize(("prefix", "name"), PREFIXES)
def test_prefix(prefix: str, name: str | None) -> None:
    command = xm.find_command(prefix)
    assert (command.name if command else None) == name


def test_nobody_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert xm.main(["--root", str(tmp_path), "list"]) == 1
    assert capsys.readouterr().err == (
        "Error: Unable to connect to xend: No such file or directory. Is xend running?\n"
    )


def test_not_root(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.delenv("XENDPY_ROOT", raising=False)
    monkeypatch.setenv("XM_SERVER", "httpu:///var/run/xend/no-such-socket")
    assert xm.main(["list"]) == 1
    assert capsys.readouterr().err == (
        "Error: Most commands need root access. Please try again as root.\n"
    )


def test_xm_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = ["uvloop", "numpy", "cryptography", "asyncio", "sexpdata"]
    script = (
        "import sys; from xendpy.cli import xm\n"
        f"xm.main(['--root', {str(tmp_path)!r}, 'list'])\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    replies = {"xend.domains_with_state": ALL}
    with FakeXend(tmp_path / "var/run/xend/xmlrpc.sock", replies):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=30
        )
    assert done.stderr == ""
    assert done.stdout == HEADER + ROW_0 + ROW_1 + ROW_SPARE + "[]\n"
