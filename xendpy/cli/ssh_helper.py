"""`virt-ssh-helper`: what a libvirt client runs on a host that it reaches over ssh.

Source: libvirt's src/remote/remote_ssh_helper.c (facts): it is called with the connection's URI,
and what comes on its standard input goes to the daemon's socket, and back. libvirt has a program
of this name with its daemons; here none of them need be.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from xendpy.paths import Paths

PIECE: Final = 1 << 16
MONOLITHIC: Final = "libvirt-sock"  # of a libvirtd that serves every driver
SCHEME: Final = re.compile(r"([a-z]+)(\+[a-z]+)?:.*")


def main(argv: Sequence[str] | None = None) -> int:
    """Connect standard input and output with the daemon; return the exit code."""
    parser = argparse.ArgumentParser(prog="virt-ssh-helper")
    parser.add_argument("-r", "--readonly", action="store_true", help="use the read-only socket")
    parser.add_argument("uri", help="the connection's URI, as xen:///system")
    args = parser.parse_args(argv)
    found = SCHEME.fullmatch(args.uri)
    if found is None:
        parser.error(f"{args.uri} is no URI of a connection")
    directory = Paths.choose().libvirt_dir
    path = _socket_path(directory, found[1], "-ro" if args.readonly else "")
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except OSError as error:
        print(f"virt-ssh-helper: {path}: {error.strerror}", file=sys.stderr)
        return 1
    _join(sock)
    return 0


def _socket_path(directory: Path, driver: str, suffix: str) -> Path:
    """Return the socket of the driver's own daemon, else that of the one for all."""
    own = directory / f"virt{driver}d-sock{suffix}"
    return own if own.exists() else directory / f"{MONOLITHIC}{suffix}"


def _join(sock: socket.socket) -> None:
    """Copy both ways until the daemon has closed its end."""

    def to_daemon() -> None:
        with suppress(OSError):
            _copy(lambda: os.read(sys.stdin.fileno(), PIECE), sock.sendall)
            sock.shutdown(socket.SHUT_WR)

    # A thread that waits for input must not keep the process once the daemon has gone.
    threading.Thread(target=to_daemon, daemon=True).start()
    with suppress(OSError):
        _copy(lambda: sock.recv(PIECE), _write_out)


def _copy(read: Callable[[], bytes], write: Callable[[bytes], None]) -> None:
    while piece := read():
        write(piece)


def _write_out(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
