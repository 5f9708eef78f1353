"""Real daemons on hosts that are short of room: disks that take no file, memory that is short."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.disks import filled, make_read_only, small_disk
from tests.peers.hosts import Host, host_port, serving, until
from tests.peers.relocation_host import read_all
from tests.soak import disk
from tests.streams import config, entries, envelope, pv_image

READY_OK = b"(ready receive)\n(ok)\n"


@contextmanager
def daemon(place: Path) -> Iterator[Host]:
    host = Host("et-virt07", place / "et-virt07", "127.0.0.1", host_port())
    host.configure()
    with serving(host):
        yield host


def test_a_running_guest_goes_on_where_it_cannot_be_saved(tmp_path: Path) -> None:
    with daemon(tmp_path) as host, small_disk(tmp_path / "small", 8) as place:
        host.create(memory=16, extra="tick=0.05 fill=random")
        for spoil, text in (
            (filled, "No space left on device"),
            (_read_only, "Unable to create file"),
        ):
            with spoil(place):
                done = host.xm("save", "testvm1", str(place / "testvm1.sav"), check=False)
                assert done.returncode == 1
                assert text in done.stderr
                ticks = len(host.console("testvm1"))
                until(lambda ticks=ticks: len(host.console("testvm1")) > ticks, "another tick")
            assert list(place.iterdir()) == []
        file = tmp_path / "testvm1.sav"
        host.call("xend.domain.save", "testvm1", str(file), False)
        assert host.guests() == []
        host.call("xend.domain.restore", str(file), False)
        assert host.guests() == ["testvm1"]


@contextmanager
def _read_only(place: Path) -> Iterator[None]:
    make_read_only(place)
    yield


def _give(address: tuple[str, int], wire: bytes) -> bytes:
    with socket.create_connection(address, timeout=120) as sock:
        sock.sendall(b"receive\n")
        answer = sock.recv(80)
        with suppress(OSError):  # refused: the reason is there to be read
            sock.sendall(wire)
            sock.shutdown(socket.SHUT_WR)
        return answer + read_all(sock)


def test_a_host_that_is_short_of_memory_says_so_and_goes_on(tmp_path: Path) -> None:
    image = pv_image([entries(range(64))], p2m_size=2048 << 8)
    large = envelope(config("large", memory=2048)) + image.wire
    with daemon(tmp_path) as host:
        address = (host.address, host.port)
        pid = host.pid()
        status = Path(f"/proc/{pid}/status").read_text()
        vm_kib = int(status.split("VmSize:")[1].split()[0])
        before = resource.prlimit(pid, resource.RLIMIT_AS)
        # Room for a thread and its buffers, none for a map of 2 GiB.
        resource.prlimit(pid, resource.RLIMIT_AS, ((vm_kib << 10) + (512 << 20), before[1]))
        answer = _give(address, large)
        assert b"Cannot allocate memory" in answer or b"short of memory" in answer, answer
        assert host.guests() == []
        assert _give(address, disk.OTHER) == READY_OK
        assert host.guests() == ["web2"]
        resource.prlimit(pid, resource.RLIMIT_AS, before)
        assert _give(address, large) == READY_OK
        assert sorted(host.guests()) == ["large", "web2"]
        assert "Traceback" not in host.log()
