"""Migration through `ssh -L`: the README's way to encrypt it without certificates."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.hosts import Host, host_port, pair, until

SSHD = shutil.which("sshd", path="/usr/sbin:/sbin:" + os.environ.get("PATH", ""))

pytestmark = [
    pytest.mark.skipif(SSHD is None, reason="needs Debian's openssh-server"),
    pytest.mark.skipif(os.getuid() != 0, reason="sshd lets only root log anybody in"),
    pytest.mark.timeout(480),
]


@pytest.fixture
def tunnel(tmp_path: Path) -> Iterator[tuple[Host, Host, int]]:
    """Give two hosts, and a port on the first that leads to the second through ssh."""
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(key, check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    ssh_port, port = host_port(), host_port()
    server = [
        *(str(SSHD), "-D", "-e", "-f", "/dev/null", "-p", str(ssh_port)),
        *("-o", "ListenAddress=127.0.0.2", "-o", f"HostKey={tmp_path}/host"),
        *("-o", f"AuthorizedKeysFile={tmp_path}/user.pub", "-o", "StrictModes=no"),
        *("-o", "PermitRootLogin=yes", "-o", f"PidFile={tmp_path}/pid"),
    ]
    with pair(tmp_path / "hosts") as (here, there), _running(server, "127.0.0.2", ssh_port):
        client = [
            *("ssh", "-N", "-i", str(tmp_path / "user"), "-p", str(ssh_port), "-F", "none"),
            *("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/known"),
            *("-o", "ExitOnForwardFailure=yes"),
            *("-L", f"127.0.0.1:{port}:{there.address}:{there.port}"),
            f"{getpass.getuser()}@127.0.0.2",
        ]
        with _running(client, "127.0.0.1", port):
            yield here, there, port


class _running:
    """Run a command until the block ends; it listens on `address`:`port` when it begins."""

    def __init__(self, argv: list[str], address: str, port: int) -> None:
        self._argv, self._where = argv, (address, port)

    def __enter__(self) -> None:
        self._process = subprocess.Popen(self._argv, stderr=subprocess.PIPE)
        until(self._listens, f"{self._argv[0]} listens")

    def _listens(self) -> bool:
        assert self._process.poll() is None, self._process.communicate()[1]
        with socket.socket() as probe:
            return probe.connect_ex(self._where) == 0

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()


def test_a_guest_moves_live_through_the_tunnel(tunnel: tuple[Host, Host, int]) -> None:
    here, there, port = tunnel
    here.create(extra="tick=0.05 dirty=5MB/s wss=4MB")
    here.xm("migrate", "--live", "-p", str(port), "testvm1", "127.0.0.1")
    assert here.guests() == []
    assert there.guests() == ["testvm1"]
    until(lambda: any("et-virt08" in line for line in there.console("testvm1")), "it ticks there")
