"""An xl for driver tests: answers in the words of a real one (Xen 4.17, tests/data/xl).

Guests are kept as the streams that came in. What it prints has the form of the recorded answers;
nothing of xendpy's own parsing or encoding is used.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xendpy.errors import HypervisorError
from xendpy.hypervisor.xltool import failure

DATA = Path(__file__).parent.parent / "data" / "xl"
HEAD = len(b"Xen saved domain, xl format\n \0 \r")
DOMAIN_0 = json.loads((DATA / "list-l.json").read_text())[0]
TITLE, ZERO = (DATA / "list-v.txt").read_text().splitlines()[:2]
END = bytes(8)
DEADLINE_S = 120.0
TAIL = 4096  # with these bytes a guest's state goes, while it stands still
SUSPENDED = "---s--2"  # the flags, and the reason of the shutdown
BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GO = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"


@dataclass
class FakeGuest:
    domid: int
    config: dict[str, Any]
    stream: bytes
    flags: str = "--p---"

    @property
    def name(self) -> str:
        return str(self.config["c_info"]["name"])

    @property
    def suspended(self) -> bool:
        return self.flags == SUSPENDED


class FakeChild:
    def __init__(self, argv: Sequence[str], work: Any) -> None:
        self.argv = argv
        self.status = 0
        self.stderr = ""
        self.killed = threading.Event()
        self.released = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,))
        self._thread.start()

    def _run(self, work: Any) -> None:
        try:
            self.status, self.stderr = work(self)
        except Killed:
            self.status = -15

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        if self.running:
            self.kill()
            self._thread.join(DEADLINE_S)
            assert not self.running, f"{self.argv} does not end"
            raise HypervisorError(f"{self.argv} took longer than {timeout_s:g} s", operation="xl")
        if self.killed.is_set():
            raise failure(self.argv, -15, "")
        if self.status:
            raise failure(self.argv, self.status, self.stderr)

    def kill(self) -> None:
        if self.running:
            self.killed.set()


def saved(guest: FakeGuest) -> bytes:
    """What xl writes of a guest."""
    config = json.dumps(guest.config).encode() + b"\0"
    return (
        b"Xen saved domain, xl format\n \0 \r"
        + struct.pack("<IIII", 0x01020304, 3, 0, len(config) + 4)
        + struct.pack("<I", len(config))
        + config
        + guest.stream
    )


class Cut(Exception):
    """The transport has closed."""


@dataclass
class Sender:
    """`xl migrate`, from the first banner to its exit status."""

    xl: FakeXl
    guest: FakeGuest
    send_fd: int
    recv_fd: int

    def run(self, child: FakeChild) -> tuple[int, str]:
        try:
            self._expect(BANNER, child)
        except Cut:
            return 1, "migration target: unexpected end of banner\n"
        try:
            if "migrate" in self.xl.refuse:
                raise Cut
            data = saved(self.guest)
            self._write(data[: len(data) - TAIL], child)
            self.guest.flags = SUSPENDED
            self._write(data[len(data) - TAIL :], child)
            self._expect(READY, child)
        except Cut:
            self.close()
            self.guest.flags = "-b----"
            said = self.xl.refuse.get("migrate", "")
            return 1, f"{said}Migration failed, resuming at sender.\n"
        name = self.guest.name
        self.xl.do_rename(str(self.guest.domid), f"{name}--migratedaway")
        try:
            self._write(GO, child)
            self._expect(REPORT, child)
            status = self._read(1, child)
            if status != b"\0":
                self._expect(GO, child)
        except Cut:
            return 1, "** Migration failed during final handshake **\n"
        if status == b"\0":
            self.xl.guests.remove(self.guest)
            return 0, "Migration successful.\n"
        self.xl.do_rename(str(self.guest.domid), name)
        self.guest.flags = "-b----"
        return 1, "Migration failed due to problems at target.\n"

    def _write(self, data: bytes, child: FakeChild) -> None:
        while data:
            self._alive(child)
            try:
                data = data[os.write(self.send_fd, data[: 1 << 16]) :]
            except BrokenPipeError:
                raise Cut from None

    def _read(self, count: int, child: FakeChild) -> bytes:
        data = b""
        while len(data) < count:
            self._alive(child)
            if not select.select([self.recv_fd], [], [], 0.1)[0]:
                continue
            piece = os.read(self.recv_fd, count - len(data))
            if not piece:
                raise Cut
            data += piece
        return data

    def _expect(self, message: bytes, child: FakeChild) -> None:
        said = self._read(len(message), child)
        assert said == message, said

    def _alive(self, child: FakeChild) -> None:
        if child.killed.is_set():
            raise Killed

    def close(self) -> None:
        for fd in (self.send_fd, self.recv_fd):
            if fd >= 0:
                os.close(fd)
        self.send_fd = self.recv_fd = -1


class Killed(Exception):
    """A signal has ended xl: it does nothing more."""


@dataclass
class FakeXl:
    """`refuse` is a verb that fails, with its text; `die_after` ends a restore after so many
    bytes; what is in `hang` never ends: a verb, `deaf` (a restore that reads nothing) or `mute` (a
    save that suspends and writes nothing). `gone`: the program has been removed."""

    free_mib: int = 1000
    refuse: dict[str, str] = field(default_factory=dict)
    die_after: int | None = None
    hang: set[str] = field(default_factory=set)
    gone: bool = False
    guests: list[FakeGuest] = field(default_factory=list)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    caps: str = "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64"
    virt_caps: str = "pv hvm hap shadow"
    _next: int = 1

    def run(self, args: Sequence[str], *, timeout_s: float = 60.0) -> str:
        verb, *rest = args
        self._begin(args)
        if verb in self.hang:
            raise HypervisorError(f"xl {verb} took longer than {timeout_s:g} s", operation="xl")
        if verb in self.refuse:
            raise failure(["xl", *args], 1, self.refuse[verb])
        return getattr(self, "do_" + verb.replace("-", "_"))(*rest) or ""

    def _begin(self, args: Sequence[str]) -> None:
        self.calls.append(tuple(args))
        if self.gone:
            raise HypervisorError("/usr/sbin/xl: No such file or directory", operation="xl")

    def start(
        self,
        args: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> FakeChild:
        self._begin(args)
        if args[0] == "restore":
            assert args[1:] == ["-p", "/dev/stdin"]
            assert stdin is not None
            fd = os.dup(stdin)
            return FakeChild(args, lambda child: self._restore(child, fd))
        if args[0] == "migrate":
            assert args[1:3] == ["-s", ""]
            return self._migrate(args, self._guest(args[3]), pass_fds)
        assert args[0] == "save"
        assert args[1] == "-p"
        assert args[3] == f"/dev/fd/{pass_fds[0]}"
        fd = os.dup(pass_fds[0])
        return FakeChild(args, lambda child: self._save(child, self._guest(args[2]), fd))

    def _restore(self, child: FakeChild, fd: int) -> tuple[int, str]:
        data = b""
        with os.fdopen(fd, "rb", buffering=0) as file:
            self._hang("deaf", child)
            while piece := file.read(1 << 16):
                data += piece
                if self.die_after is not None and len(data) >= self.die_after:
                    return 3, (DATA / "restore-short.err").read_text()
        self._hang("restore", child)
        if child.killed.is_set() or not data.endswith(END):
            return 3, (DATA / "restore-short.err").read_text()
        if "restore" in self.refuse:
            return 3, self.refuse["restore"]
        order, mandatory, _, length = struct.unpack_from("<IIII", data, HEAD)
        assert (order, mandatory) == (0x01020304, 3)
        (config_length,) = struct.unpack_from("<I", data, HEAD + 16)
        assert config_length + 4 == length
        config = data[HEAD + 20 :][:config_length]
        assert config.endswith(b"}\0")
        self.add(json.loads(config[:-1]), data[HEAD + 16 + length :])
        return 0, ""

    def _hang(self, what: str, child: FakeChild) -> None:
        if what in self.hang:
            assert child.killed.wait(DEADLINE_S), f"nobody ends {child.argv}"
            raise Killed

    def _save(self, child: FakeChild, guest: FakeGuest, fd: int) -> tuple[int, str]:
        data = saved(guest)
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                if "save" in self.refuse:
                    return 1, self.refuse["save"]
                guest.flags = SUSPENDED
                self._hang("mute", child)
                while data:
                    data = data[file.write(data) :]
                self._hang("save", child)
        except BrokenPipeError:
            guest.flags = "-b----"  # xl resumes a guest that it could not save
            return 1, "Failed to save domain, resuming domain\n"
        guest.flags = "--p---"
        return 0, ""

    def _migrate(
        self, args: Sequence[str], guest: FakeGuest, pass_fds: Sequence[int]
    ) -> FakeChild:
        """Sends to a shell command, as xl does; a real shell, real pipes."""
        up_out, up_in = os.pipe()
        down_out, down_in = os.pipe()
        shell = subprocess.Popen(
            ["sh", "-c", args[4]], stdin=up_out, stdout=down_in, pass_fds=tuple(pass_fds)
        )
        os.close(up_out)
        os.close(down_in)
        sender = Sender(self, guest, up_in, down_out)

        def work(child: FakeChild) -> tuple[int, str]:
            try:
                return sender.run(child)
            finally:
                sender.close()
                shell.wait()

        return FakeChild(args, work)

    def resume(self, domid: int) -> None:
        self.calls.append(("(resume)", str(domid)))
        guest = self._guest(str(domid))
        assert guest.suspended, "libxl fails to resume a guest that is not suspended"
        guest.flags = "-b----"

    def add(self, config: dict[str, Any], stream: bytes = b"", flags: str = "--p---") -> FakeGuest:
        guest = FakeGuest(self._next, config, stream, flags)
        self._next += 1
        self.guests.append(guest)
        return guest

    def _guest(self, domid: str) -> FakeGuest:
        for guest in self.guests:
            if str(guest.domid) == domid:
                return guest
        raise failure(["xl", "domid"], 1, (DATA / "destroy-99.err").read_text())

    # The verbs

    def do_list(self, how: str) -> str:
        if how == "-l":
            found = [DOMAIN_0, *({"domid": g.domid, "config": g.config} for g in self.guests)]
            return json.dumps(found, indent=4)
        rows = [
            f"{g.name:<40} {g.domid:5} {g.config['b_info']['target_memkb'] >> 10:5} "
            f"{len(g.config['b_info']['avail_vcpus']):5}     {g.flags[:6]}       5.5 "
            f"{g.config['c_info']['uuid']}        {'2' if g.suspended else '-'}                -"
            for g in self.guests
        ]
        return "\n".join([TITLE, ZERO, *rows]) + "\n"

    def do_info(self) -> str:
        lines = []
        for line in (DATA / "info.txt").read_text().splitlines():
            key = line.partition(":")[0]
            value = {
                "free_memory": self.free_mib,
                "xen_caps": self.caps,
                "virt_caps": self.virt_caps,
            }.get(key.strip())
            lines.append(line if value is None else f"{key}: {value}")
        return "\n".join(lines)

    def do_uptime(self, domid: str) -> str:
        guest = self._guest(domid)
        return f"Name                                ID Uptime\n{guest.name} {domid}  1:00:16\n"

    def do_destroy(self, domid: str) -> None:
        self.guests.remove(self._guest(domid))

    def do_pause(self, domid: str) -> None:
        self._guest(domid).flags = "--p---"

    def do_unpause(self, domid: str) -> None:
        guest = self._guest(domid)
        assert guest.flags == "--p---", "xl fails to unpause a guest that is not paused"
        guest.flags = "-b----"

    def do_rename(self, domid: str, name: str) -> None:
        assert all(guest.name != name for guest in self.guests)
        self._guest(domid).config["c_info"]["name"] = name

    def do_shutdown(self, *args: str) -> None:
        self._guest(args[-1])

    do_reboot = do_shutdown

    def do_dmesg(self) -> str:
        return "(XEN) text\n"

    def do_mem_set(self, domid: str, size: str) -> None:
        self._guest(domid).config["b_info"]["target_memkb"] = int(size.removesuffix("m")) << 10

    def do_mem_max(self, domid: str, size: str) -> None:
        self._guest(domid).config["b_info"]["max_memkb"] = int(size.removesuffix("m")) << 10

    def do_vcpu_set(self, domid: str, count: str) -> None:
        self._guest(domid).config["b_info"]["avail_vcpus"] = list(range(int(count)))

    def do_create(self, _paused: str, path: str) -> None:
        said = dict(
            line.split(" = ", 1) for line in Path(path).read_text().splitlines() if " = " in line
        )
        self.add(
            {
                "c_info": {
                    "type": json.loads(said["type"]),
                    "name": json.loads(said["name"]),
                    "uuid": json.loads(said["uuid"]),
                },
                "b_info": {
                    "max_vcpus": int(said["maxvcpus"]),
                    "avail_vcpus": list(range(int(said["vcpus"]))),
                    "max_memkb": int(said["maxmem"]) << 10,
                    "target_memkb": int(said["memory"]) << 10,
                },
                "disks": [
                    {
                        "pdev_path": disk["target"],
                        "vdev": disk["vdev"],
                        "format": disk["format"],
                        "readwrite": int(disk["access"] == "rw"),
                    }
                    for disk in devices(said.get("disk", "[]"))
                ],
                "nics": [
                    {"devid": devid, "bridge": nic["bridge"], "mac": nic["mac"]}
                    for devid, nic in enumerate(devices(said.get("vif", "[]")))
                ],
            }
        )


def devices(said: str) -> list[dict[str, str]]:
    """Return a list of devices of an xl.cfg."""
    return [dict(item.split("=", 1) for item in text.split(", ")) for text in json.loads(said)]
