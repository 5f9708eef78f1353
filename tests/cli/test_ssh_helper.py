from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from xendpy.cli import ssh_helper
from xendpy.paths import Paths


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XENDPY_ROOT", str(tmp_path))
    directory = Paths.choose().libvirt_dir
    directory.mkdir(parents=True)
    return directory


def listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    sock.settimeout(30)
    return sock


@pytest.mark.parametrize(
    ("there", "argv", "expected"),
    [
        (("virtxend-sock", "libvirt-sock"), ["xen:///system"], "virtxend-sock"),
        (("virtxend-sock-ro", "libvirt-sock-ro"), ["-r", "xen:///"], "virtxend-sock-ro"),
        (("libvirt-sock",), ["xen+unix:///system"], "libvirt-sock"),
        (("virtxend-sock", "libvirt-sock"), ["qemu:///system"], "libvirt-sock"),
    ],
)
def test_bytes_go_both_ways_to_the_socket_of_the_driver(
    run: Path, there: tuple[str, ...], argv: list[str], expected: str
) -> None:
    servers = {name: listen(run / name) for name in there}
    helper = subprocess.Popen(
        [sys.executable, "-m", "xendpy.cli.ssh_helper", *argv],
        env=os.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert helper.stdin is not None
    helper.stdin.write(b"question" * 20_000)
    helper.stdin.close()
    peer, _ = servers[expected].accept()
    with peer, peer.makefile("rb") as file:
        assert file.read() == b"question" * 20_000
        peer.sendall(b"answer")
        peer.shutdown(socket.SHUT_WR)
    assert helper.stdout is not None
    assert helper.stdout.read() == b"answer"
    assert helper.wait(30) == 0
    for server in servers.values():
        server.close()


def test_no_daemon_is_said_in_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ssh_helper.main(["xen:///system"]) == 1
    assert f"virt-ssh-helper: {run}/libvirt-sock: No such file" in capsys.readouterr().err
