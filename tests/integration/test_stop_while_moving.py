"""A daemon that is told to stop while guests move: they arrive first, stay, or it refuses."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import streams
from tests.control.daemons import DEADLINE_S, Daemon, Start, starter
from tests.guests import OTHER_UUID
from tests.peers.hosts import Host, _wait_for_end, pair, until
from tests.peers.relocation_host import read_all
from xendpy.cli.migrate_progress import ENDED
from xendpy.errors import RpcError

MORE = streams.pv_image(release="4.4").wire
IMAGE = streams.envelope(streams.config("web1")) + MORE
OTHER = streams.envelope(streams.config("web2", uuid=OTHER_UUID)) + MORE
HALF = len(IMAGE) // 2
SLOWLY = {"bandwidth": 2 << 20}  # bytes/s, for a guest of 16 MiB

pytestmark = pytest.mark.timeout(900)


class Receiver:
    """One daemon that guests of old xends come to."""

    def __init__(self, start: Start, config: str = "") -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = int(server.getsockname()[1])
        self.daemon = start(
            "(xend-relocation-server yes) (xend-relocation-address 127.0.0.1)"
            f" (xend-relocation-port {self.port}) (xendpy-hypervisor store) {config}"
        )
        self.daemon.told()
        self.host = Host("", self.daemon.root, "127.0.0.1", self.port)

    @contextmanager
    def half_a_guest(self) -> Iterator[socket.socket]:
        """Send half of a guest as an old xend does; its pages are being taken."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S) as sock:
            sock.sendall(b"receive\n")
            assert sock.recv(80) == b"(ready receive)\n"
            sock.sendall(IMAGE[:HALF])
            self.daemon.wait_for_log("web1")
            yield sock

    def refuses(self) -> bool:
        """Say whether nobody listens any more."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            # The listener was closed in the middle of the handshake.
            pass
        return False

    def ended(self) -> int:
        """Return the exit code, once there is one."""
        self.daemon.process.communicate(timeout=DEADLINE_S)
        return self.daemon.process.returncode


def send_rest(sock: socket.socket, image: bytes) -> bytes:
    sock.sendall(image)
    sock.shutdown(socket.SHUT_WR)
    return read_all(sock)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starter(tmp_path) as start:
        yield start


def told_when_draining(daemon: Daemon) -> tuple[str, str]:
    """Return status and time asked for, once the manager has been told whom it is about."""
    status = extension = ""
    while not (status.startswith("draining: 1 incoming") and "web1" in status and extension):
        for line in daemon.manager.recv(4096).decode().splitlines():
            key, _, value = line.partition("=")
            status = value if key == "STATUS" else status
            extension = value if key == "EXTEND_TIMEOUT_USEC" else extension
    return status, extension


def test_a_guest_that_comes_in_arrives_first(start: Start) -> None:
    receiver = Receiver(start)
    with receiver.half_a_guest() as sock:
        receiver.daemon.process.send_signal(signal.SIGTERM)
        status, extension = told_when_draining(receiver.daemon)
        assert "MiB/s" in status and extension == "30000000"
        until(receiver.refuses, "nobody new is let in", timeout_s=DEADLINE_S)
        assert send_rest(sock, IMAGE[HALF:]) == b"(ok)\n"
    assert receiver.ended() == 0
    assert Receiver(start).host.guests() == ["web1"]


def test_a_guest_that_comes_in_is_cut_where_it_is_told_so(start: Start) -> None:
    receiver = Receiver(start, "(xendpy-stop-while-moving cut)")
    with receiver.half_a_guest():
        receiver.daemon.process.send_signal(signal.SIGTERM)
        assert receiver.ended() == 0
    assert Receiver(start).host.guests() == []


def test_it_refuses_where_it_is_told_so(start: Start) -> None:
    receiver = Receiver(start, "(xendpy-stop-while-moving refuse)")
    with receiver.half_a_guest() as sock:
        for command in ("restart", "stop"):
            done = receiver.host.xend(command)
            assert (done.returncode, done.stderr) == (
                1,
                "xend: not stopped while guests move: web1 coming in;"
                " --force stops it all the same\n",
            )
        assert receiver.daemon.process.poll() is None
        forced = receiver.host.begin_xend("stop", "--force")
        receiver.daemon.wait_for_log("stopping: 1 incoming")
        assert send_rest(sock, IMAGE[HALF:]) == b"(ok)\n"
        assert receiver.ended() == 0
        assert forced.communicate(timeout=DEADLINE_S)[1] == (
            "xend: stopping, with web1 coming in\n"
        )


def test_nothing_new_goes_out_of_a_daemon_that_stops(start: Start) -> None:
    receiver = Receiver(start)
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=DEADLINE_S) as sock:
        assert send_rest(sock, b"receive\n" + OTHER).endswith(b"(ok)\n")
    with receiver.half_a_guest() as sock:
        receiver.daemon.process.send_signal(signal.SIGTERM)
        until(receiver.refuses, "it stops", timeout_s=DEADLINE_S)
        assert receiver.host.call("xend.domains", False) == ["Domain-0", "web2"]
        with pytest.raises(RpcError, match="the daemon is stopping"):
            receiver.host.call("xendpy.migrate", "web2", {"destination": "127.0.0.1"}, {})
        assert send_rest(sock, IMAGE[HALF:]) == b"(ok)\n"
    assert receiver.ended() == 0


def test_a_guest_that_goes_out_arrives_first(tmp_path: Path) -> None:
    with pair(tmp_path) as (here, there):
        here.create()
        request = {"destination": "et-virt08", "live": True}
        here.call("xendpy.migrate", "testvm1", request, SLOWLY)
        assert any(row["state"] not in ENDED for row in here.call("xendpy.migrations"))
        with ended_daemon(here):
            os.kill(here.pid(), signal.SIGTERM)
        assert there.guests() == ["testvm1"]
        here.start()
        assert here.guests() == []


@contextmanager
def ended_daemon(host: Host) -> Iterator[None]:
    """Wait for the end of the daemon that runs when this is entered."""
    handle = os.pidfd_open(host.pid())
    yield
    _wait_for_end(handle)
