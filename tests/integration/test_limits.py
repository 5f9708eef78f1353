"""Every limit of the relocation port, broken with a real daemon, one after the other.

Whoever goes too far is told where its protocol has a way, the log and the audit trail say it, no
memory is taken before, and the next good guest comes in.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers.hosts import Host, host_port, serving, until
from tests.peers.relocating import READY
from tests.peers.relocation_host import read_all
from tests.streams import config, entries, envelope, hvm_image, pv_image, qemu_record
from xendpy.relocation.frames import FrameType

LIMITS = """
(xendpy-max-connections 24)
(xendpy-max-connections-per-peer 8)
(xendpy-max-incoming 2)
(xendpy-max-guest-memory 32)
(xendpy-max-config-bytes 4096)
(xendpy-max-sxp-depth 16)
(xendpy-max-device-model 1)
(xendpy-stall-timeout 3)
(xendpy-control-timeout 2)
(xendpy-eof-timeout 2)
(xendpy-unpause-delay 0)
"""
PEAK_KIB = 24 << 10  # what serving a peer may take; a batch's staging is 4 MiB
SIGNATURE = b"LinuxGuestRecord"
MIB = 1 << 20
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host("et-virt07", tmp_path_factory.mktemp("limits") / "a", "127.0.0.1", host_port())
    made.configure(more=LIMITS)
    with serving(made):
        yield made


def connect(host: Host, address: str = "127.0.0.3") -> socket.socket:
    return host.connect(address)


def told(host: Host, data: bytes) -> bytes:
    """Say `data` and return all that is answered; what is refused is not all taken."""
    with connect(host) as sock:
        with suppress(OSError):
            sock.sendall(data)
        return read_all(sock)


def offer(config_bytes: bytes) -> bytes:
    return b"receive\n" + SIGNATURE + struct.pack(">i", len(config_bytes)) + config_bytes


def one_peer_s_connections(host: Host) -> bytes:
    return _one_too_many(host, ["127.0.0.3"] * 8)


def all_connections(host: Host) -> bytes:
    return _one_too_many(host, [f"127.0.0.{10 + number // 8}" for number in range(24)])


def _one_too_many(host: Host, addresses: list[str]) -> bytes:
    """Connect from these addresses, and return what one more is told."""
    with ExitStack() as stack:
        try:
            for address in addresses:
                stack.enter_context(_served(host, address))
        except OSError:  # those of an earlier test still count
            return b""
        return read_all(stack.enter_context(connect(host)))


def _served(host: Host, address: str) -> socket.socket:
    """Return a connection that the daemon has surely counted."""
    sock = connect(host, address)
    try:
        sock.sendall(b"help\n")
        if not sock.recv(100).startswith(b"(ok"):
            raise ConnectionAbortedError("closed at once")
    except OSError:
        sock.close()
        raise
    return sock


def migrations_at_a_time(host: Host) -> bytes:
    with ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(connect(host))
            sock.sendall(b"receive\n")
            assert sock.recv(80) == READY
        return told(host, b"help\nreceive\n")


def a_guest_s_memory(host: Host) -> bytes:
    return told(host, offer(config("large", memory=33)) + bytes(32 * MIB))


def the_size_of_a_configuration(host: Host) -> bytes:
    return told(host, b"receive\n" + SIGNATURE + struct.pack(">i", 4097) + b"(" * 4097)


def a_negative_size(host: Host) -> bytes:
    return told(host, b"receive\n" + SIGNATURE + struct.pack(">i", -1))


def the_depth_of_a_configuration(host: Host) -> bytes:
    return told(host, offer(config(extra="(deep " + "(a " * 17 + ")" * 18)))


def silence_in_a_stream(host: Host) -> bytes:
    return told(host, b"receive\n" + SIGNATURE[:7])


def silence_in_an_image(host: Host) -> bytes:
    return told(host, offer(config()) + pv_image().wire[:5000])


def a_configuration_that_trickles(host: Host) -> bytes:
    data = offer(config())
    with connect(host) as sock:
        sock.settimeout(0.1)
        for start in range(len(data)):
            sock.sendall(data[start : start + 1])
            try:
                answer = sock.recv(4096)
            except TimeoutError:
                continue
            if answer != READY:
                return answer
        raise AssertionError("the daemon waited for all of it")


def silence_before_a_request(host: Host) -> bytes:
    return told(host, b"")


def a_request_that_trickles(host: Host) -> bytes:
    with connect(host) as sock:
        sock.settimeout(0.1)
        while True:
            try:
                sock.sendall(b" ")
                return sock.recv(4096)
            except TimeoutError:
                continue
            except ConnectionError:
                return b""


def bad_requests(host: Host) -> bytes:
    return told(host, b"bogus\n" * 10)


def a_long_request(host: Host) -> bytes:
    return told(host, b"(" + b"a" * (1 << 20))


def pages_of_a_batch(host: Host) -> bytes:
    image = pv_image([entries(range(50))]).wire
    head = image.index(struct.pack("<i", 50))
    return told(host, offer(config()) + image[:head] + struct.pack("<i", 1 << 30) + bytes(MIB))


def a_p2m_beyond_the_guest_s_memory(host: Host) -> bytes:
    return told(host, offer(config()) + struct.pack("<Q", 1 << 40) + bytes(MIB))


def the_device_model_s_state(host: Host) -> bytes:
    record = qemu_record(b"QEVM" + bytes(3 * MIB))
    wire = offer(config("hvm1", hvm=True)) + hvm_image(device_model=record).wire
    with connect(host) as sock:
        sock.sendall(wire)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def bytes_behind_a_guest(host: Host) -> bytes:
    uuid = f"00000000-0000-4000-9000-{next(_numbers):012}"
    answer = told(host, offer(config("chatty", uuid=uuid)) + pv_image().wire + bytes(20 * MIB))
    (entry,) = until(host.in_doubt, "the guest in doubt")
    assert host.state("chatty") == "--p---"
    host.call("xendpy.migration.settle", entry["id"], "discard")
    assert "chatty" not in host.guests()
    return answer


def a_frame_of_another_xendpy(host: Host) -> bytes:
    with connect(host) as sock:
        request = f"(version 1) (id {next(_numbers):032x}) (host-id {'0' * 36}) (features (v1))"
        sock.sendall(f"(xendpy-receive {request})\n".encode())
        assert sock.recv(200).startswith(b"(ready xendpy-receive")
        plan = json.dumps({"live": False}).encode()
        sock.sendall(struct.pack("<II", FrameType.PLAN, len(plan)) + plan)
        sock.sendall(struct.pack("<II", FrameType.CONFIG, 4097))
        return read_all(sock)


@dataclass(frozen=True)
class Row:
    """What is broken; what its peer, the log and the audit trail are to say of it."""

    broken: Callable[[Host], bytes]
    answer: str
    log: str
    audit: str


def err(text: str) -> str:
    return rf"\(err \(type .*\) \(value '.*{text}.*'\)\)\n$"


REFUSED = r"event=refused peer=127\.0\.0\.3:\d+ by="
FAILED = r"event=relocation direction=in id=[0-9a-f]{32} peer=127\.0\.0\.3:\d+ .*result=failed .*"
ROWS = [
    Row(
        one_peer_s_connections,
        "^$",
        "closed the connection of .*: 8 connections from one peer are allowed",
        REFUSED + "connections",
    ),
    Row(
        all_connections,
        "^$",
        "closed the connection of .*: 24 connections are open, at most 24 are allowed",
        REFUSED + "connections",
    ),
    Row(
        migrations_at_a_time,
        err("2 migrations are coming in, at most 2 are taken"),
        "refused .*: 2 migrations are coming in, at most 2 are taken",
        REFUSED + "incoming",
    ),
    Row(
        a_guest_s_memory,
        err("at most 32 MiB are taken .xendpy-max-guest-memory"),
        "large needs 33 MiB",
        FAILED.replace(".*result", ".*name=large uuid=.*result") + "33 MiB",
    ),
    Row(
        the_size_of_a_configuration,
        err("config size 4097, expected 1 to 4096"),
        "config size 4097",
        FAILED + "config size 4097",
    ),
    Row(a_negative_size, err("config size -1"), "config size -1", FAILED + "config size -1"),
    Row(
        the_depth_of_a_configuration,
        err("nested deeper than 16"),
        "nested deeper than 16",
        FAILED + "nested deeper than 16",
    ),
    Row(
        silence_in_a_stream,
        err("timed out after 2 s while receiving"),
        "timed out after 2 s",
        FAILED + "timed out",
    ),
    Row(
        silence_in_an_image,
        err("timed out after 3 s while receiving"),
        "timed out after 3 s",
        FAILED + "timed out",
    ),
    Row(a_configuration_that_trickles, err("timed out"), "timed out", FAILED + "timed out"),
    Row(
        silence_before_a_request,
        "^$",
        "closed the connection of .*: no operation within 2 s",
        REFUSED + "timeout",
    ),
    Row(
        a_request_that_trickles,
        "^$",
        "closed the connection of .*: no operation within 2 s",
        REFUSED + "timeout",
    ),
    Row(bad_requests, "no operation within 8 bad requests", "", ""),
    Row(a_long_request, "longer than 4096 bytes", "", ""),
    Row(pages_of_a_batch, err("1073741824"), "1073741824", FAILED + "1073741824"),
    Row(a_p2m_beyond_the_guest_s_memory, err("p2m"), "p2m", FAILED + "p2m"),
    Row(
        the_device_model_s_state,
        err("more than 1048576 bytes"),
        "hvm1 from .* is kept: .*more than 1048576 bytes",
        FAILED + "more than 1048576 bytes",
    ),
    Row(
        bytes_behind_a_guest,
        r"\(ok\)\n$",
        r"sent \d{8} bytes after the end of the stream",
        r"event=relocation .*name=chatty .*result=done",
    ),
    Row(a_frame_of_another_xendpy, "4097", "4097", ""),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.broken.__name__)
def test_a_limit_is_kept_and_the_next_guest_comes_in(host: Host, row: Row) -> None:
    pid = host.pid()
    # Anew for each: what an earlier one said would count for a later one.
    seen = len(host.log())
    before_kib = _memory_kib(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # forgets the peak
    answer = row.broken(host).decode("latin-1").removeprefix(READY.decode())
    assert re.search(row.answer, answer, re.DOTALL), answer
    for wanted in (row.log, row.audit):
        until(lambda wanted=wanted: _said(host, seen, wanted, row), f"a line like {wanted}")
    assert _memory_kib(pid, "VmHWM") - before_kib < PEAK_KIB
    assert "Traceback" not in host.log()[seen:]
    _take_a_good_guest(host)


def _said(host: Host, seen: int, wanted: str, row: Row) -> bool:
    if re.search(wanted, host.log()[seen:]):
        return True
    if row.audit == REFUSED + "connections":  # such lines are one a second at most
        row.broken(host)
    return False


def _memory_kib(pid: int, field: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0])


def _take_a_good_guest(host: Host) -> None:
    number = next(_numbers)
    uuid = f"00000000-0000-4000-8000-{number:012}"
    wire = b"receive\n" + envelope(config(f"good{number}", uuid=uuid)) + pv_image().wire

    def sent() -> bool:  # connections of the case before may still be there
        with connect(host) as sock:
            try:
                sock.sendall(wire)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                return False
            return read_all(sock) == READY + b"(ok)\n"

    until(sent, "a good guest to be taken")
    assert host.guests() == [f"good{number}"]
    host.call("xend.domain.destroy", f"good{number}")
