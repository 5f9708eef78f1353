"""Show the main job: a daemon, an old xend's guest relocated to it, and the proof of it.

    make demo

A daemon on loopback, its files in a scratch directory; a peer process that plays back, byte for
byte, what a xend 4.4 sent for `xm migrate --live`; then xm's view of the guest, and a comparison
of every page with the recorded description. Exits 0 only if nothing differs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.peers.ports import free_port

DATA = Path(__file__).parent.parent / "data"
GUESTS = ("xend-4.4-pv64-live", "xend-4.4-hvm-live")
PAGE = 4096
DEADLINE_S = 240.0

CONFIG = """\
(xend-relocation-server yes)
(xend-relocation-port {port})
(xend-relocation-address '127.0.0.1')
(xend-relocation-hosts-allow '^localhost$ ^127\\\\.0\\\\.0\\\\.1$')
"""


class DemoFailed(Exception):
    """What the demonstration could not show."""


@dataclass(frozen=True)
class Host:
    """One daemon's files and port."""

    root: Path
    port: int

    def run(self, *argv: str) -> str:
        """Show a command and what it prints; return what it printed."""
        print(f"\n# {shlex.join(argv)}")
        program = [sys.executable, "-m", "xendpy" if argv[0] == "xend" else "xendpy.cli.xm"]
        done = self._call([*program, *argv[1:]], stderr=subprocess.STDOUT, cwd=self.root)
        print(done.stdout, end="")
        if done.returncode:
            raise DemoFailed(f"{argv[0]} {argv[1]} exited {done.returncode}")
        return done.stdout

    def quietly(self, *argv: str) -> None:
        """Run a xend command whatever it says."""
        self._call([sys.executable, "-m", "xendpy", *argv], stderr=subprocess.DEVNULL)

    def peer(self, recording: Path) -> None:
        """Let an old xend relocate its guest to this host."""
        argv = ["-m", "tests.demo.old_xend", "127.0.0.1", str(self.port), str(recording)]
        done = self._call([sys.executable, *argv], stderr=subprocess.STDOUT)
        print(done.stdout, end="")
        if done.returncode:
            self.log_from(0)
            raise DemoFailed("the peer was not content")

    def _call(
        self, argv: list[str], *, stderr: int, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            cwd=cwd,
            env={"PATH": "/usr/bin:/bin", "XENDPY_ROOT": str(self.root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=DEADLINE_S,
        )

    def log_from(self, position: int) -> int:
        """Print what the log has gained since `position`, and return its length."""
        text = (self.root / "var/log/xen/xend.log").read_bytes()
        for line in text[position:].decode().splitlines():
            print(f"  {line}")
        return len(text)


def main() -> int:
    """Run the demonstration; 0 only if every page is the recorded one."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with scratch_host() as host:
            for guest in GUESTS:
                show(host, guest)
    except DemoFailed as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print("\nEvery page of every guest is the one that was sent.")
    return 0


@contextmanager
def scratch_host() -> Iterator[Host]:
    """A daemon that listens, below a directory that goes away with it."""
    with tempfile.TemporaryDirectory(prefix="xendpy-demo-") as directory:
        host = Host(Path(directory), free_port())
        config = host.root / "etc/xen/xend-config.sxp"
        config.parent.mkdir(parents=True)
        config.write_text(CONFIG.format(port=host.port))
        heading("A daemon")
        print(f"\n# cat {config.relative_to(host.root)}\n{config.read_text()}", end="")
        try:
            host.run("xend", "start")
            yield host
            heading("The end")
            host.run("xend", "stop")
        finally:
            host.quietly("stop")


def show(host: Host, guest: str) -> None:
    """Relocate one recorded guest to the host and look at what arrived."""
    described = json.loads((DATA / f"{guest}.json").read_text())
    log = host.root / "var/log/xen/xend.log"
    position = log.stat().st_size if log.exists() else 0

    heading(f"An old xend relocates its guest: {guest}")
    print("\nThe peer:")
    host.peer(DATA / f"{guest}.relocation.xz")
    print("\nThe daemon's log:")
    host.log_from(position)

    name = host.run("xm", "list").splitlines()[-1].split()[0]
    save, memory = f"{name}.sav", f"{name}.mem"
    host.run("xm", "save", name, save)
    host.run("xm", "inspect", save)
    host.run("xm", "extract", save, memory)
    compare(host.root / memory, described)


def compare(memory: Path, described: dict[str, dict[str, str]]) -> None:
    """Compare every page with its recorded sum; what is not described must be a hole."""
    sums = {int(pfn, 16): digest for pfn, digest in described["page_sha256"].items()}
    if not sums:
        raise DemoFailed("the description names no page")
    found = dict(_pages(memory))
    wrong = sorted(pfn for pfn in sums.keys() | found.keys() if sums.get(pfn) != found.get(pfn))
    if wrong:
        raise DemoFailed(f"{len(wrong)} of {len(sums)} pages differ, the first is {wrong[0]:#x}")
    print(f"\n{len(sums)} pages compared with the recorded description: identical")


def _pages(memory: Path) -> Iterator[tuple[int, str]]:
    """Yield pfn and sha256 of every page that is no hole."""
    with memory.open("rb", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        position = 0
        while (position := _next_data(file.fileno(), position)) < end:
            file.seek(position)
            yield position // PAGE, hashlib.sha256(file.read(PAGE)).hexdigest()
            position += PAGE


def _next_data(fd: int, position: int) -> int:
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing but a hole up to the end
            raise
        return sys.maxsize


def heading(text: str) -> None:
    print(f"\n{text}\n{'=' * len(text)}")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
