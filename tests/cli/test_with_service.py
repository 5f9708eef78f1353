"""`xend` and `xm` as a user runs them: processes, a daemon, its unix socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xendpy.cli import daemon, stopping, xend

HEADER = "Name                                        ID   Mem VCPUs      State   Time(s)"
TICKER = """
kernel = 'xendpy:ticker'
memory = 16
name = 'tick'
vif = ['mac=00:16:3e:11:22:33, bridge=xenbr0']
"""


class Host:
    """A root of its own, and the two commands in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "etc/xen/xend-config.sxp"
        self.config.parent.mkdir(parents=True)
        self.config.write_text("(xend-relocation-server no)\n")

    def run(self, module: str, *argv: str) -> subprocess.CompletedProcess[str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("XEND", "XM_"))}
        return subprocess.run(
            [sys.executable, "-m", module, "--root", str(self.root), *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
            env=environ,
        )

    def xend(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.run("xendpy", *argv)

    def xm(self, *argv: str) -> str:
        done = self.run("xendpy.cli.xm", *argv)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout

    @property
    def pid(self) -> int:
        return int((self.root / "var/run/xend.pid").read_text())


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    stopped = made.xend("stop")
    assert (stopped.returncode, stopped.stderr) == (0, "")


def test_start_status_restart_stop(host: Host) -> None:
    assert host.xend("status").returncode == 3
    started = host.xend("start")
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    first = host.pid
    assert Path(f"/proc/{first}/comm").read_text() == "python\n"
    assert host.xend("status").returncode == 0
    assert host.xend("start").returncode == 0
    assert host.pid == first
    lines = host.xm("list").splitlines()
    assert lines[0] == HEADER
    assert lines[1].startswith("Domain-0                                     0 ")
    assert host.xend("restart").returncode == 0
    assert host.pid != first
    assert not daemon.is_daemon(first)
    assert host.xend("stop").returncode == 0
    assert host.xend("status").returncode == 3
    assert not (host.root / "var/run/xend.pid").exists()


def test_a_guest_lives_through_its_commands(host: Host) -> None:
    (host.root / "etc/xen/tick").write_text(TICKER)
    saved = host.root / "tick.save"
    host.xend("start")
    assert host.xm("create", "tick") == (
        f'Using config file "{host.root}/etc/xen/tick".\nStarted domain tick (id=1)\n'
    )
    assert host.xm("domid", "tick") == "1\n"
    host.xm("pause", "tick")
    assert host.xm("list", "tick").splitlines()[1].split()[:5] == [
        "tick", "1", "16", "1", "--p---",
    ]  # fmt: skip
    assert host.xm("domstate", "tick") == "paused by admin\n"
    host.xm("unpause", "tick")
    assert "    (name tick)\n" in host.xm("list", "-l", "tick")
    assert (
        host.xm("network-list", "tick")
        .splitlines()[1]
        .startswith("0   0  00:16:3e:11:22:33    0     1  ")
    )
    host.xm("save", "tick", str(saved))
    assert host.run("xendpy.cli.xm", "domid", "tick").returncode == 3
    assert saved.read_bytes()[:16] == b"LinuxGuestRecord"
    host.xm("restore", "-p", str(saved))
    host.xm("rename", "tick", "tock")
    host.xm("destroy", "tock")
    assert len(host.xm("list").splitlines()) == 2
    assert "Xend Daemon started" in host.xm("log")


def test_bad_configuration_says_why(host: Host) -> None:
    host.config.write_text("(xend-relocation-server yes)\n(xend-relocation-port no)\n")
    background = host.xend("start")
    assert background.returncode == 1
    assert f"{host.config}:2: xend-relocation-port: " in background.stderr
    foreground = host.xend("start", "--foreground")
    assert (foreground.returncode, foreground.stderr) == (78, background.stderr)
    reloaded = host.xend("reload")
    assert reloaded.returncode == 1
    assert reloaded.stderr.startswith(f"xend: not reloaded: {host.config}:2: ")
    assert host.xend("status").returncode == 3


def test_busy_port_says_so(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        host.config.write_text(
            f"(xend-relocation-server yes)(xend-relocation-port {port})"
            "(xend-relocation-address '127.0.0.1')(xend-relocation-hosts-allow '^x$')"
        )
        started = host.xend("start")
    assert started.returncode == 1
    assert str(port) in started.stderr
    assert "Traceback" not in started.stderr
    log = host.root / "var/log/xen/xend.log"
    last = log.read_text().splitlines()[-1]
    assert "ERROR" in last and f"cannot listen on 127.0.0.1:{port}" in last


def test_foreground_ends_at_sigterm(host: Host) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(host.root / "notify"))
        notify.settimeout(120)
        with subprocess.Popen(
            [sys.executable, "-m", "xendpy", "start", "--foreground", "--root", str(host.root)],
            env=os.environ | {"NOTIFY_SOCKET": str(host.root / "notify")},
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                while b"READY=1" not in notify.recv(4096).splitlines():
                    assert process.poll() is None
                assert host.pid == process.pid
            finally:
                process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
    assert host.xend("status").returncode == 3


def test_daemon_stopped_by_a_signal_ends_as_any_other(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host.xend("start")
    pid = host.pid
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(stopping, "ANSWER_S", 0.5)
    monkeypatch.setattr(stopping, "SILENT_S", 120.0)
    assert xend.main(["--root", str(host.root), "status"]) == 4
    assert xend.main(["--root", str(host.root), "stop"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"xend: pid {pid} runs and does not answer: no answer within 0.5 s",
        f"xend: pid {pid} does not answer; stopping it all the same",
    ]
    assert (host.root / "var/log/xen/xend.log").read_text().endswith("Xend Daemon stopped\n")


def test_second_daemon_leaves_the_first_alone(host: Host) -> None:
    host.xend("start")
    pid_file = host.root / "var/run/xend.pid"
    first = host.pid
    pid_file.unlink()  # as if both had been started at the same moment
    second = host.xend("start")
    assert second.returncode == 1
    assert "Traceback" not in second.stderr
    assert not pid_file.exists()
    pid_file.write_text(str(first))


def test_check_config_reads_the_file_given(host: Host) -> None:
    other = host.root / "other.sxp"
    other.write_text("(xend-relocation-port 0x1f42)\n")
    checked = host.xend("check-config", str(other))
    assert checked.returncode == 78
    assert f"{other}:1" in checked.stdout + checked.stderr
    assert host.xend("check-config").returncode == 0
