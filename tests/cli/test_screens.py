"""`xm top` and `xm console`: what is shown."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_xend import FakeXend, fault
from tests.peers.terminal import on_terminal
from xendpy.cli import console, top, xm

NODE = [["system", "Linux"], ["host", "h7"], ["nr_cpus", 2]]
NODE += [["total_memory", 20480], ["free_memory", 16384]]
WEB1 = ["domain", ["domid", 7], ["name", "web1"], ["memory", 512], ["vcpus", 2]]
WEB1 += [["state", "--p---"], ["cpu_time", 93.3]]
SPARE = ["domain", ["name", "spare"], ["memory", 512]]

ADDED = [
    ("", "abc", "abc"),
    ("abc", "abcdef", "def"),
    ("abc", "abc", ""),
    ("abcdef", "defgh", "gh"),
    ("abc", "xyz", "xyz"),
    ("abc", "", ""),
]


@pytest.mark.parametrize(("before", "now", "shown"), ADDED)
def test_console_shows_only_what_is_added(before: str, now: str, shown: str) -> None:
    assert console.added(before, now) == shown


def run(root: Path, *argv: str, replies: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    with FakeXend(root / "var/run/xend/xmlrpc.sock", replies):
        return subprocess.run(
            [sys.executable, "-m", "xendpy.cli.xm", "--root", str(root), *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )


def test_console_without_a_terminal_prints_and_ends(tmp_path: Path) -> None:
    done = run(
        tmp_path, "console", "web1",
        replies={"xend.domain": WEB1, "xendpy.console": "boot\\nlogin: "},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "boot\nlogin: ", "")


def test_console_of_a_domain_that_does_not_run(tmp_path: Path) -> None:
    done = run(tmp_path, "console", "spare", replies={"xend.domain": SPARE})
    assert done.returncode == 1
    assert done.stderr == "Error: Domain 'spare' is not started\n"


def test_console_quiet(tmp_path: Path) -> None:
    done = run(tmp_path, "console", "-q", "x", replies={"xend.domain": fault(3, "x")})
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_console_follows_until_ctrl_bracket(tmp_path: Path) -> None:
    texts = iter(["one\\n", "one\\ntwo\\n"])
    replies = {
        "xend.domain": WEB1,
        "xendpy.console": lambda _: next(texts, "one\\ntwo\\nthree\\n"),
    }
    master, slave = pty.openpty()
    with FakeXend(tmp_path / "var/run/xend/xmlrpc.sock", replies):
        process = subprocess.Popen(
            [sys.executable, "-m", "xendpy.cli.xm", "--root", str(tmp_path), "console", "web1"],
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == ["one\n", "two\n", "three\n"]
        os.write(master, b"\x1d")
        rest, notice = process.communicate(timeout=120)
    os.close(master)
    os.close(slave)
    assert (process.returncode, rest) == (0, "")
    assert notice == "(Ctrl-] leaves the console)\n"


def test_interrupted_console_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    replies = {"xend.domain": WEB1, "xendpy.console": "one\\n"}
    with FakeXend(tmp_path / "var/run/xend/xmlrpc.sock", replies):
        process = subprocess.Popen(
            [sys.executable, "-m", "xendpy.cli.xm", "--root", str(tmp_path), "console", "web1"],
            stdin=slave,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        process.stderr.readline()  # the notice comes before the terminal is changed
        while termios.tcgetattr(slave) == before:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "")
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_console_ends_with_its_domain(tmp_path: Path) -> None:
    def gone(_: str) -> str:
        if gone_after.pop():
            raise fault(3, "web1")
        return "bye\\n"

    gone_after = [True, False]
    master, slave = pty.openpty()
    with FakeXend(
        tmp_path / "var/run/xend/xmlrpc.sock", {"xend.domain": WEB1, "xendpy.console": gone}
    ):
        done = subprocess.run(
            [sys.executable, "-m", "xendpy.cli.xm", "--root", str(tmp_path), "console", "web1"],
            stdin=slave,
            capture_output=True,
            text=True,
            timeout=120,
        )
    os.close(master)
    os.close(slave)
    assert (done.returncode, done.stdout) == (0, "bye\n")


def test_console_says_that_the_daemon_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "var/run/xend/xmlrpc.sock"
    words = ("--root", str(tmp_path), "console", "web1")
    with (
        FakeXend(path, {"xend.domain": WEB1, "xendpy.console": "login: "}) as fake,
        on_terminal(sys.executable, "-m", "xendpy.cli.xm", *words) as (terminal, process),
    ):
        terminal.read_until("login: ")
        path.rename(tmp_path / "hidden")
        fake.hang_up()
        terminal.read_until("")
        assert process.wait(120) == 1
        (tmp_path / "hidden").rename(path)
    assert "Is xend running?" in terminal.shown


def test_top_without_a_terminal_is_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = {"xend.node.info": NODE, "xend.domains_with_state": [WEB1, SPARE]}
    with FakeXend(tmp_path / "var/run/xend/xmlrpc.sock", replies):
        assert xm.main(["--root", str(tmp_path), "top"]) == 0
    assert capsys.readouterr().out == (
        "xm top - h7: 1 domains, 1 paused\n"
        "Mem: 20480M total, 4096M used, 16384M free    CPUs: 2\n"
        "                NAME  STATE    CPU(sec) CPU(%)   MEM(M) VCPUS\n"
        "                web1  --p---         93    0.0      512     2\n"
    )


@pytest.mark.parametrize("term", ["vt100", "vt220", "xterm-256color"])
def test_top_on_a_terminal(term: str, tmp_path: Path) -> None:
    replies = {"xend.node.info": NODE, "xend.domains_with_state": [WEB1, SPARE]}
    words = ("--root", str(tmp_path), "top")
    with (
        FakeXend(tmp_path / "var/run/xend/xmlrpc.sock", replies),
        on_terminal("env", f"TERM={term}", sys.executable, "-m", "xendpy.cli.xm", *words) as (
            terminal,
            process,
        ),
    ):
        terminal.read_until("web1")
        terminal.type(b"q")
        terminal.read_until("")
        assert process.wait(120) == 0


def test_top_shows_the_share_of_a_cpu() -> None:
    def at(at_s: float, cpu_time: float) -> top.Sample:
        row = top.domain_row([*WEB1[:-1], ["cpu_time", cpu_time]])
        return top.Sample(at_s=at_s, host="h", nr_cpus=2, total_mib=2, free_mib=1, rows=(row,))

    line = top.lines(at(14.0, 21.0), at(10.0, 20.0))[3]
    assert line.split()[3] == "25.0"
