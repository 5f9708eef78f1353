"""Relocate a recorded guest to a daemon, as an old xend does: a process of its own.

    python -m tests.demo.old_xend HOST PORT RECORDING.relocation.xz

Source: XendDomain.domain_migrate, Xen 4.4: `receive`, one recv(80), the payload, the end. An old
xend closes both directions at once and never looks; this one keeps the other open, to show the
verdict.
"""

from __future__ import annotations

import lzma
import socket
import sys

REQUEST = b"receive\n"
READY = b"(ready receive)\n"
TIMEOUT_S = 30.0  # the old sender's own


def relocate(host: str, port: int, recording: bytes) -> bytes:
    """Send `recording`, which begins with the request, and return what the receiver says."""
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as sock:
        sock.sendall(REQUEST)
        print(f"> {REQUEST.decode().strip()}")
        answer = sock.recv(80)
        print(f"< {answer.decode('latin-1').strip()}")
        if answer != READY:
            sys.exit(f"expected {READY!r}")
        sock.sendall(memoryview(recording)[len(REQUEST) :])
        sock.shutdown(socket.SHUT_WR)
        print(f"> {len(recording) - len(REQUEST)} bytes of guest, then the end")
        verdict = b""
        while block := sock.recv(4096):
            verdict += block
        print(f"< {verdict.decode('latin-1').strip()}")
        return verdict


def main() -> None:
    host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with lzma.open(path) as file:
        recording = file.read()
    if relocate(host, port, recording) != b"(ok)\n":
        sys.exit("the guest was not taken")


if __name__ == "__main__":
    main()
