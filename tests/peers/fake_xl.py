"""An xl for driver tests: answers in the words of a real one (Xen 4.17, tests/data/xl).

Guests are kept as the streams that came in. What it prints has the form of the recorded answers;
nothing of xendpy's own parsing or encoding is used.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xendpy.hypervisor.xltool import failure

DATA = Path(__file__).parent.parent / "data" / "xl"
HEAD = len(b"Xen saved domain, xl format\n \0 \r")
DOMAIN_0 = json.loads((DATA / "list-l.json").read_text())[0]
TITLE, ZERO = (DATA / "list-v.txt").read_text().splitlines()[:2]
END = bytes(8)


@dataclass
class FakeGuest:
    domid: int
    config: dict[str, Any]
    stream: bytes
    flags: str = "--p---"

    @property
    def name(self) -> str:
        return str(self.config["c_info"]["name"])


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
        self.status, self.stderr = work(self)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"{self.argv} does not end"
        if self.killed.is_set():
            raise failure(self.argv, -15, "")
        if self.status:
            raise failure(self.argv, self.status, self.stderr)

    def kill(self) -> None:
        if self.running:
            self.killed.set()


@dataclass
class FakeXl:
    """`refuse` is a verb that fails, with its text; `die_after` ends a restore after so many
    bytes."""

    free_mib: int = 1000
    refuse: dict[str, str] = field(default_factory=dict)
    die_after: int | None = None
    guests: list[FakeGuest] = field(default_factory=list)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    caps: str = "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64"
    _next: int = 1

    def run(self, args: Sequence[str], *, timeout_s: float = 60.0) -> str:
        verb, *rest = args
        self.calls.append(tuple(args))
        if verb in self.refuse:
            raise failure(["xl", *args], 1, self.refuse[verb])
        return getattr(self, "do_" + verb.replace("-", "_"))(*rest) or ""

    def start(
        self,
        args: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> FakeChild:
        self.calls.append(tuple(args))
        if args[0] == "restore":
            assert args[1:] == ["-p", "/dev/stdin"]
            assert stdin is not None
            fd = os.dup(stdin)
            return FakeChild(args, lambda child: self._restore(child, fd))
        assert args[0] == "save"
        assert args[1] == "-p"
        assert args[3] == f"/dev/fd/{pass_fds[0]}"
        fd = os.dup(pass_fds[0])
        return FakeChild(args, lambda child: self._save(self._guest(args[2]), fd))

    def _restore(self, child: FakeChild, fd: int) -> tuple[int, str]:
        data = b""
        with os.fdopen(fd, "rb", buffering=0) as file:
            while piece := file.read(1 << 16):
                data += piece
                if self.die_after is not None and len(data) >= self.die_after:
                    return 3, (DATA / "restore-short.err").read_text()
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

    def _save(self, guest: FakeGuest, fd: int) -> tuple[int, str]:
        config = json.dumps(guest.config).encode() + b"\0"
        data = (
            b"Xen saved domain, xl format\n \0 \r"
            + struct.pack("<IIII", 0x01020304, 3, 0, len(config) + 4)
            + struct.pack("<I", len(config))
            + config
            + guest.stream
        )
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                while data:
                    data = data[file.write(data) :]
        except BrokenPipeError:
            guest.flags = "-b----"  # xl resumes a guest that it could not save
            return 1, "Failed to save domain, resuming domain\n"
        guest.flags = "--p---"
        return 0, ""

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
            f"{len(g.config['b_info']['avail_vcpus']):5}     {g.flags}       5.5 "
            f"{g.config['c_info']['uuid']}        -                -"
            for g in self.guests
        ]
        return "\n".join([TITLE, ZERO, *rows]) + "\n"

    def do_info(self) -> str:
        lines = []
        for line in (DATA / "info.txt").read_text().splitlines():
            key = line.partition(":")[0]
            value = {"free_memory": self.free_mib, "xen_caps": self.caps}.get(key.strip())
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
            }
        )
