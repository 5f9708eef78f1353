from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from xendpy.control.notify import Notifier, forget


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(40)
        yield sock


def test_manager_is_told(manager: socket.socket, tmp_path: Path) -> None:
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    notifier.ready("idle")
    assert manager.recv(100) == b"READY=1\nSTATUS=idle"
    notifier.status("one\ntwo")
    assert manager.recv(100) == b"STATUS=one two"
    notifier.reloading()
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d{6,}", manager.recv(100))
    notifier.stopping("draining")
    assert manager.recv(100) == b"STOPPING=1\nSTATUS=draining"
    notifier.extend_timeout(30)
    assert manager.recv(100) == b"EXTEND_TIMEOUT_USEC=30000000"
    notifier.alive()
    assert manager.recv(100) == b"WATCHDOG=1"


def test_abstract_socket_is_found() -> None:
    name = f"xendpy-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(40)
        Notifier.from_environ({"NOTIFY_SOCKET": "@" + name}).alive()
        assert sock.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "/nonexistent/notify", "vsock:2:1"])
def test_nobody_to_tell_is_no_error(address: str) -> None:
    Notifier.from_environ({"NOTIFY_SOCKET": address}).ready("idle")
    Notifier.from_environ({}).ready("idle")


def test_manager_that_does_not_read_stops_nobody(manager: socket.socket, tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "notify"))
    for _ in range(2000):
        notifier.alive()


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "60000000"}, 30.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "often"}, None),
        ({"NOTIFY_SOCKET": "/x"}, None),
    ],
)
def test_watchdog_is_fed_at_half_its_time(
    environ: dict[str, str], interval_s: float | None
) -> None:
    assert Notifier.from_environ(environ).watchdog_interval_s == interval_s


def test_children_do_not_speak_to_the_manager() -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    forget(environ)
    assert environ == {"PATH": "/bin"}
