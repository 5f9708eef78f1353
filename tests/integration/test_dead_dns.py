"""A name server that never answers: it delays those whose names matter, and nobody else."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.peers.hosts import Host, host_port, serving, until
from tests.peers.relocation_host import read_all
from tests.streams import config, envelope, pv_image

NAME_SERVER = "127.0.0.98"
# Longer than any test: who waits for an answer hangs.
RESOLV_CONF = f"nameserver {NAME_SERVER}\noptions timeout:30 attempts:5\n"
ALLOW = r"(xend-relocation-hosts-allow '^127\\.0\\.0\\.1$ ^friend\\.example$')"
MORE = "(xendpy-dns-timeout 1)\n(xendpy-unpause-delay 0)\n"


@contextmanager
def _black_hole() -> Iterator[None]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        try:
            silent.bind((NAME_SERVER, 53))
        except OSError as error:
            pytest.skip(f"no port 53 for a silent name server: {error}")
        yield


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text(RESOLV_CONF)
    own = ["unshare", "--mount", "sh", "-c", f"mount --bind {resolv_conf} /etc/resolv.conf"]
    if not shutil.which("unshare") or subprocess.run(own, capture_output=True).returncode:
        pytest.skip("no mount namespace of its own for this user")
    own[-1] += ' && exec "$0" "$@"'
    place = tmp_path / "a"
    made = Host("et-virt07", place, "127.0.0.1", host_port(), (*own, sys.executable, "-m"))
    made.configure(more=MORE)
    file = place / "etc/xen/xend-config.sxp"
    file.write_text(
        re.sub(r"\(xend-relocation-hosts-allow .*\)", lambda _: ALLOW, file.read_text())
    )
    with _black_hole(), serving(made):
        yield made


def test_a_dead_name_server_stalls_only_who_needs_it(host: Host) -> None:
    # More strangers than look-ups are made at a time.
    strangers = [host.connect(f"127.0.0.{number}") for number in range(20, 40)]
    with host.connect("127.0.0.1") as known:
        wire = envelope(config()) + pv_image().wire
        known.sendall(b"help\nreceive\n" + wire)
        known.shutdown(socket.SHUT_WR)
        answer = read_all(known)
    assert answer.startswith(b"(ok (help ")
    assert answer.endswith(b"\n(ready receive)\n(ok)\n")
    assert host.guests() == ["web1"]
    for sock in strangers:
        assert read_all(sock) == b""
        sock.close()
    log = host.log()
    assert re.search(r"no name for 127\.0\.0\.2\d within 1 s", log)
    assert re.search(r"Rejected connection from 127\.0\.0\.2\d", log)
    until(
        lambda: (
            len(re.findall(r"event=refused peer=127\.0\.0\.\d+:\d+ .*by=hosts-allow", host.log()))
            == len(strangers)
        ),
        "all refusals in the audit trail",
    )
    # Look-ups still hang: nobody waits for them.
    assert host.xend("stop").returncode == 0
    host.start()
