"""One Xen host under QEMU, without KVM: its process, and the way to root's commands in it.

A machine that runs is described by DIR/run/N.json: any process can then use it.

    python -m tests.lab.machine 7 'xl list'
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.errors import LabError
from tests.lab.recipe import QUICK
from tests.peers.ports import free_port, free_udp_ports

if TYPE_CHECKING:
    from tests.lab.build import Image

AGENT_PORT = 2323  # in domain 0
BOOT_S = 3600.0
COMMAND_S = 1200.0
BLOCK = 1 << 20
# SVM with nested paging: PVH and HVM guests run in the emulator. eager-fpu: with lazy switching
# registers get lost in it now and then.
CPU = "qemu64,+svm,+npt"
# An instruction takes 2 ns of the emulated clock, however slow this machine is: libxl gives a
# network script ten seconds, too few on a busy one. An idle host's clock is the real one.
CLOCK_SHIFT = 1
XEN = (
    "console=com1 com1=115200,8n1 dom0_mem={dom0}M,max:{dom0}M dom0_max_vcpus=1 loglvl=all"
    " guest_loglvl=all noreboot spec-ctrl=no,eager-fpu xpti=no"
)
KERNEL = (
    f"console=hvc0 {QUICK} root=/dev/vda rw net.ifnames=0 lab.host={{number}}"
    " systemd.show_status=error"
)
MEMORY_MIB, DOM0_MIB = 2304, 1024


@dataclass(frozen=True, slots=True)
class Machine:
    """A running host; `pid` is QEMU's, `port` the agent's on the outer loopback."""

    number: int
    pid: int
    port: int

    def run(self, command: str, *, timeout_s: float = COMMAND_S) -> tuple[int, str]:
        """Run a shell command as root in domain 0; return its status and output.

        Raises:
            LabError: the host does not answer.
        """
        said, _ = self._ask({"run": command, "timeout": timeout_s}, timeout_s + 30)
        return int(said["status"]), str(said["output"])

    def put(self, source: Path, target: str, *, mode: int = 0o644) -> None:
        """Copy a file into domain 0; errors as `run`."""
        request = {"put": target, "size": source.stat().st_size, "mode": mode}
        self._ask(request, COMMAND_S, source)

    def get(self, source: str, target: Path) -> None:
        """Copy a file out of domain 0; errors as `run`."""
        self._ask({"get": source}, COMMAND_S, None, target)

    def _ask(
        self,
        request: Mapping[str, Any],
        timeout_s: float,
        source: Path | None = None,
        target: Path | None = None,
    ) -> tuple[dict[str, Any], int]:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as sock:
                sock.sendall(json.dumps(request).encode() + b"\n")
                if source is not None:
                    with open(source, "rb") as file:
                        sock.sendfile(file)
                with sock.makefile("rb") as answers:
                    said = json.loads(answers.readline())
                    if target is not None:
                        _copy(answers, target, said["size"])
        except (OSError, ValueError, KeyError) as error:
            raise LabError(f"host {self.number} does not answer: {error!r}") from error
        return said, 0

    def wait(self) -> None:
        """Wait until domain 0 answers.

        Raises:
            LabError: it does not, or QEMU has ended.
        """
        end = time.monotonic() + BOOT_S
        while time.monotonic() < end:
            if not self.running():
                raise LabError(f"QEMU of host {self.number} has ended: see its log")
            with suppress(LabError):
                self.run("true", timeout_s=30)
                return
            time.sleep(1)
        raise LabError(f"host {self.number} is not up after {BOOT_S:g} s")

    def running(self) -> bool:
        """Say whether QEMU is still there, and is no other process with its number."""
        with suppress(OSError):
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
            return b"et-virt%02d" % self.number in words
        return False

    def stop(self) -> None:
        """End QEMU."""
        if not self.running():
            return
        handle = os.pidfd_open(self.pid)
        try:
            os.kill(self.pid, signal.SIGTERM)
            while self.running():
                time.sleep(0.1)
        finally:
            os.close(handle)


def _copy(answers: Any, target: Path, size: int) -> None:
    with open(target, "wb") as file:
        while size:
            block = answers.read(min(size, BLOCK))
            if not block:
                raise OSError("cut short")
            file.write(block)
            size -= len(block)


@dataclass(frozen=True, slots=True)
class Cable:
    """What joins two hosts: a UDP port at each end, which no other lab on this machine has."""

    ports: Mapping[int, int]

    @classmethod
    def between(cls, *numbers: int) -> Cable:
        """Return a cable between the hosts of these numbers."""
        return cls(dict(zip(numbers, free_udp_ports(len(numbers)), strict=True)))

    def option(self, number: int) -> str:
        """Return what QEMU is told of the end at host `number`."""
        (peer,) = (port for other, port in self.ports.items() if other != number)
        return f"udp=127.0.0.1:{peer},localaddr=127.0.0.1:{self.ports[number]}"


def start(image: Image, number: int, cable: Cable, *disks: Path) -> Machine:
    """Start a host at its end of the cable; it has `disks` as /dev/vdb and so on.

    What it writes to them goes into files of this run.

    Raises:
        LabError: a tool is missing, or failed.
    """
    run = image.directory / "run"
    run.mkdir(exist_ok=True)
    _overlay(run, number, (image.dom0_disk, *disks))
    port = free_port()
    with open(run / f"{number}.log", "wb") as log:
        process = subprocess.Popen(
            _argv(image, number, cable, port, 1 + len(disks)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    machine = Machine(number, process.pid, port)
    (run / f"{number}.json").write_text(json.dumps(asdict(machine)))
    return machine


def attach(cache: Path, number: int) -> Machine:
    """Return a host that was started before.

    Raises:
        LabError: it does not run.
    """
    with suppress(OSError):
        machine = Machine(**json.loads((cache / f"run/{number}.json").read_text()))
        if machine.running():
            return machine
    raise LabError(f"host {number} does not run")


def _overlay(run: Path, number: int, disks: tuple[Path, ...]) -> None:
    """Give a host files for what it writes to its disks."""
    for index, disk in enumerate(disks):
        over = run / f"{number}.{index}.qcow2"
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(disk), str(over)]
        try:
            subprocess.run(argv, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise LabError(str(error)) from error


def _argv(image: Image, number: int, cable: Cable, port: int, disks: int) -> list[str]:
    run = image.directory / "run"
    argv = [
        "qemu-system-x86_64", "-name", f"et-virt{number:02}", "-machine", "pc", "-nodefaults",
        "-accel", "tcg,thread=single,tb-size=512", "-icount", f"shift={CLOCK_SHIFT}",
        "-cpu", CPU, "-smp", "1", "-m", str(MEMORY_MIB),
        "-display", "none", "-no-reboot",
        "-serial", f"file:{run / f'{number}.serial'}",
        "-monitor", "none",
        "-kernel", str(image.hypervisor), "-append", XEN.format(dom0=DOM0_MIB),
        "-initrd", f"{image.vmlinux} {KERNEL.format(number=number)},{image.dom0_ramdisk}",
        "-netdev", f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:{AGENT_PORT}",
        "-device", f"virtio-net-pci,netdev=n0,romfile=,mac=52:54:00:10:00:0{number}",
        "-netdev", f"socket,id=n1,{cable.option(number)}",
        "-device", f"virtio-net-pci,netdev=n1,romfile=,mac=52:54:00:77:00:0{number}",
    ]  # fmt: skip
    for index in range(disks):
        over = run / f"{number}.{index}.qcow2"
        drive = f"file={over},if=none,id=d{index},format=qcow2,cache=unsafe"
        argv += ["-drive", drive, "-device", f"virtio-blk-pci,drive=d{index}"]
    return argv


def main() -> int:
    """Run one command in a host that is up."""
    from tests.lab.place import cache

    try:
        status, output = attach(cache(), int(sys.argv[1])).run(sys.argv[2])
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    print(output, end="")
    return status


if __name__ == "__main__":
    sys.exit(main())
