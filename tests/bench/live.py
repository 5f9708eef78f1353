"""Rows about live migration, against QEMU's of a guest of the same size under TCG."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.bench.harness import MIB, Bench, Row, at_most
from tests.peers.hosts import host_port, pair

QEMU = "qemu-system-x86_64"
DEADLINE_S = 120.0
POLL_S = 0.02


def run(bench: Bench) -> None:
    """Measure both rows from the same migrations."""
    mib = bench.mib(1024)
    total = Row(work=f"live migration, idle {mib} MiB: total", against="QEMU", bar=at_most(1))
    down = Row(work=f"live migration, idle {mib} MiB: downtime", against="QEMU", bar=at_most(1))
    if not (bench.wants(total.work) or bench.wants(down.work)):
        return
    if shutil.which(QEMU) is None:
        for row in (total, down):
            bench.skip(row.work, row.against, row.bar, f"there is no {QEMU} on this host")
        return
    image = bench.memory_directory / "ram"
    with image.open("wb") as file, open("/dev/urandom", "rb") as random:
        for _ in range(mib):
            file.write(random.read(MIB))
    with pair(bench.directory / "live") as (source, target):
        source.create(memory=mib, extra="tick=0.2 fill=random")
        for number in range(-1, bench.pairs):
            theirs = _qemu(bench.memory_directory, image, mib)
            source.xm("migrate", "--live", "testvm1", target.name)
            told = source.last()
            source, target = target, source
            if number < 0:
                continue
            total.ours.append(float(told["elapsed"]))
            down.ours.append(float(told["downtime"]["total_s"]))
            total.theirs.append(theirs["total-time"] / 1000)
            down.theirs.append(theirs["downtime"] / 1000)
    image.unlink()
    bench.add(total)
    bench.add(down)


def _qemu(directory: Path, image: Path, mib: int) -> dict[str, Any]:
    """Migrate a guest between two QEMUs; return what query-migrate says at the end."""
    port = host_port()
    backend = f"memory-backend-file,id=ram,size={mib}M,mem-path={image},share=off"
    with ExitStack() as stack:
        source = stack.enter_context(
            _machine(directory / "source", mib, "-object", backend, "-M", "pc,memory-backend=ram")
        )
        incoming = ("-incoming", f"tcp:127.0.0.1:{port}")
        target = stack.enter_context(
            _machine(directory / "target", mib, "-M", "pc", *_backend(mib), *incoming)
        )
        assert target.call("query-status")["status"] == "inmigrate"
        source.call("migrate-set-parameters", **{"max-bandwidth": 1 << 50})
        source.call("migrate", uri=f"tcp:127.0.0.1:{port}")
        end_s = time.monotonic() + DEADLINE_S
        while (told := source.call("query-migrate")).get("status") != "completed":
            if told.get("status") == "failed" or time.monotonic() > end_s:
                raise RuntimeError(f"QEMU's migration: {told}")
            time.sleep(POLL_S)
        return told


def _backend(mib: int) -> list[str]:
    return ["-object", f"memory-backend-ram,id=ram,size={mib}M", "-machine", "memory-backend=ram"]


class _Qmp:
    """A QEMU's control connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rwb")
        self._file.readline()
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "error" in answer:
                raise RuntimeError(f"QEMU: {answer['error']['desc']}")
            if "return" in answer:
                return dict(answer["return"])


@contextmanager
def _machine(control: Path, mib: int, *options: str) -> Iterator[_Qmp]:
    """A QEMU under TCG whose guest finds nothing to boot; gone at the end."""
    with socket.socket(socket.AF_UNIX) as listener:
        control.unlink(missing_ok=True)
        listener.bind(str(control))
        listener.listen()
        listener.settimeout(DEADLINE_S)
        argv = [QEMU, "-accel", "tcg", "-m", str(mib), "-display", "none", "-nodefaults"]
        argv += ["-chardev", f"socket,id=qmp,path={control}", "-mon", "qmp,mode=control"]
        with subprocess.Popen([*argv, *options], stdin=subprocess.DEVNULL) as process:
            try:
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(DEADLINE_S)
                    yield _Qmp(sock)
            finally:
                process.kill()
                control.unlink(missing_ok=True)
