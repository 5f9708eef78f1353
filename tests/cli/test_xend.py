"""`xend`: words, texts and exit codes; what the pid file is believed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from xendpy.cli import daemon, stopping, xend
from xendpy.cli.rpc import Silent
from xendpy.paths import Paths

STARS = "*" * 70


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    for name in ("XENDPY_ROOT", "XEND_CONFIG", "XEND_DAEMONIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "var/run").mkdir(parents=True)
    return Paths(tmp_path)


@pytest.fixture
def sleeper(paths: Paths) -> Iterator[subprocess.Popen[str]]:
    """A process that looks like the daemon, with its pid file; it prints a line when it is up."""
    script = paths.root / "xend"
    script.write_text("import signal\nprint('up', flush=True)\nsignal.pause()\n")
    with subprocess.Popen(
        [sys.executable, str(script), "start"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        paths.pid_file.write_text(str(process.pid))
        yield process
        process.kill()


def run(paths: Paths, *argv: str) -> int:
    return xend.main([*argv, "--root", str(paths.root)])


def test_no_word_is_a_usage_line(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(paths) == 1
    assert capsys.readouterr().out == "usage: xend {start|stop|reload|restart}\n"


def test_unknown_word(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(paths, "frobnicate") == 1
    assert capsys.readouterr().out == "not an option: frobnicate\n"


def test_help_names_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert xend.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in xend.COMMANDS)
    assert all(f"--{row.long}" in out for row in xend.OPTIONS)


def test_not_root(
    paths: Paths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert xend.main(["status"]) == 1
    assert capsys.readouterr().err == f"{STARS}\n*** Xend must be run as root.\n{STARS}\n"
    assert run(paths, "status") == 3  # below a root of one's own nobody is asked


@pytest.mark.parametrize(("word", "code"), [("status", 3), ("stop", 0)], ids=["status", "stop"])
def test_not_running(paths: Paths, word: str, code: int) -> None:
    assert run(paths, word) == code


@pytest.mark.parametrize("text", ["", "x", "-1", "1", "99999999", "\xff"])
def test_pid_file_with_nonsense(paths: Paths, text: str) -> None:
    paths.pid_file.write_text(text, encoding="latin-1")
    assert run(paths, "status") == 3


def test_recycled_pid_is_not_the_daemon(paths: Paths) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as somebody_else:
        paths.pid_file.write_text(str(somebody_else.pid))
        assert run(paths, "stop") == 0
        assert not paths.pid_file.exists()
        assert somebody_else.poll() is None


def test_running_daemon(paths: Paths, sleeper: subprocess.Popen[str]) -> None:
    assert run(paths, "status") == 0
    assert run(paths, "start") == 0
    assert daemon.running_pid(paths) == sleeper.pid


def test_stop_waits_until_it_is_gone(paths: Paths, sleeper: subprocess.Popen[str]) -> None:
    assert run(paths, "stop") == 0
    assert sleeper.wait(40) == -signal.SIGTERM
    assert run(paths, "status") == 3


def test_stop_gives_up(
    paths: Paths,
    sleeper: subprocess.Popen[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths.config_file.parent.mkdir(parents=True)
    paths.config_file.write_text("(xendpy-drain-timeout 0.01)")
    monkeypatch.setattr(stopping, "MARGIN_S", 0.0)
    monkeypatch.setattr(signal, "SIGTERM", signal.SIGWINCH)  # a daemon that is not to be moved
    assert run(paths, "stop") == 1
    assert "still finishes migrations after 0.01 s" in capsys.readouterr().err
    assert sleeper.poll() is None


@pytest.fixture
def silence(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A socket at which nobody answers, as that of a daemon that hangs, and little patience."""
    for name in ("ANSWER_S", "SILENT_S"):
        monkeypatch.setattr(stopping, name, 0.1)
    paths.xmlrpc_socket.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(paths.xmlrpc_socket))
        listener.listen()
        yield


@pytest.mark.usefixtures("silence")
def test_status_of_a_daemon_that_hangs(
    paths: Paths, sleeper: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(paths, "status") == 4
    assert capsys.readouterr().err == (
        f"xend: pid {sleeper.pid} runs and does not answer: no answer within 0.1 s\n"
    )


@pytest.mark.usefixtures("sleeper")
def test_status_of_a_daemon_that_many_wait_for(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    """The queue at its socket is full: nobody can even wait."""
    paths.xmlrpc_socket.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(paths.xmlrpc_socket))
        listener.listen(0)
        waiting.connect(str(paths.xmlrpc_socket))
        assert run(paths, "status") == 4
    assert "runs and does not answer" in capsys.readouterr().err


@pytest.mark.usefixtures("sleeper")
def test_a_daemon_that_wakes_is_told_to_stop_once(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    answers = iter([Silent("no answer", uri="httpu:"), ""])

    def moving(_call: object) -> str:
        answer = next(answers)
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr(stopping, "moving_line", moving)
    monkeypatch.setattr(daemon, "stop", lambda pid, deadline_s: told.append(pid))
    monkeypatch.setattr(daemon, "wait_until_gone", lambda pid, deadline_s: True)
    assert run(paths, "stop") == 0
    assert len(told) == 1


@pytest.mark.usefixtures("silence")
def test_daemon_that_hangs_is_killed(
    paths: Paths,
    sleeper: subprocess.Popen[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(signal, "SIGTERM", signal.SIGWINCH)  # it does not obey
        assert run(paths, "stop") == 0
    assert sleeper.wait(40) == -signal.SIGKILL
    assert capsys.readouterr().err.splitlines() == [
        f"xend: pid {sleeper.pid} does not answer; stopping it all the same",
        f"xend: pid {sleeper.pid} does not obey: killing it",
    ]


def test_pid_file_is_the_pid_without_newline_and_goes_away(paths: Paths) -> None:
    daemon.record_pid(paths)
    assert paths.pid_file.read_bytes() == str(os.getpid()).encode()
    daemon.forget_pid(paths)
    assert not paths.pid_file.exists()


def test_pid_file_of_another_stays(paths: Paths) -> None:
    paths.pid_file.write_text("4711")
    daemon.forget_pid(paths)
    assert paths.pid_file.read_text() == "4711"


def in_background(work: str, log: Path) -> subprocess.CompletedProcess[str]:
    """Run `work` (a function body with the argument `ready`) through the daemon's start."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from xendpy.cli import daemon
        def work(ready):
        {body}
        sys.exit(daemon.start_in_background(work, stderr_log=Path({log!r})))
        """
    ).format(body=textwrap.indent(textwrap.dedent(work), "    "), log=str(log))
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30
    )


def test_start_passes_on_why_it_failed(tmp_path: Path) -> None:
    done = in_background("print('port 8002 is taken', file=sys.stderr); return 78", tmp_path / "l")
    assert (done.returncode, done.stderr) == (1, "port 8002 is taken\n")


def test_start_shows_a_crash(tmp_path: Path) -> None:
    done = in_background("raise RuntimeError('broken')", tmp_path / "l")
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: broken\n")


def test_start_returns_when_ready_and_the_daemon_lives_on(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    done = in_background(
        f"""
        print('starting', file=sys.stderr)
        daemon.set_command_name()
        ready()
        print('later', file=sys.stderr, flush=True)
        with open({str(fifo)!r}, 'w') as file:
            print(os.getpid(), os.getsid(0), os.getppid(), file=file)
            print(open('/proc/self/comm').read(), end='', file=file)
        return 0
        """,
        tmp_path / "log/xend-debug.log",
    )
    # A daemon that still held our pipes would have kept `subprocess.run` waiting.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "starting\n")
    numbers, comm = fifo.read_text().splitlines()
    pid, session, _parent = map(int, numbers.split())
    assert pid != session  # not a session leader: it can never get a terminal
    assert comm == "python"
    assert (tmp_path / "log/xend-debug.log").read_text() == "later\n"
