"""Send a synthetic legacy stream, or as many raw bytes: a process of its own for the benches.

    python -m tests.bench.sender PORT MIB contiguous|scattered|sparse|raw [tls|xend]

One random block of 4 MiB stands for every batch's pages, so that the sender costs no memory and
next to no time; in a sparse guest 15 of 16 batches hold zeros. Only the standard library: it
starts fast and shares no code with the receiver.
Source: xc_domain_save.c, Xen 4.1: 64-bit tools, 64-bit PV guest, one vcpu.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import sys
from array import array

PAGE = 4096
BATCH = 1024
READY = b"(ready receive)\n"
SPARSE = 16
STRIDE = 7919  # a prime: neighbours in the stream are no neighbours in memory
CONTEXT_BYTES = 5168  # vcpu_guest_context, 64-bit guest

UUID = b"5f1d9a52-6d0c-4c4e-9a52-00000000be9c"
CONFIG = (
    b"(domain (domid 7) (name bench) (uuid " + UUID + b") (vcpus 1)"
    b" (memory %d) (maxmem %d) (image (linux (kernel /boot/vmlinuz))))"
)


def opening(mib: int) -> bytes:
    """Return the envelope, p2m_size, extended info and p2m frame list."""
    config = CONFIG % (mib, mib)
    nr_pages = mib * 256
    blocks = b"vcpu" + struct.pack("<I", CONTEXT_BYTES) + bytes(CONTEXT_BYTES)
    frames = array("Q", range((nr_pages + 511) // 512))
    return b"".join(
        (
            b"LinuxGuestRecord" + struct.pack("!i", len(config)) + config,
            struct.pack("<Q", nr_pages),
            b"\xff" * 8 + struct.pack("<I", len(blocks)) + blocks,
            frames.tobytes(),
        )
    )


def closing() -> bytes:
    """Return the last chunks and the PV tail."""
    return b"".join(
        (
            struct.pack("<iiQ", -2, 0, 1),  # VCPU_INFO: highest id 0, vcpu 0 online
            struct.pack("<iIQIi", -7, 0, 0, 0, 0),  # TSC_INFO
            struct.pack("<i", -9),  # LAST_CHECKPOINT
            struct.pack("<i", 0),
            struct.pack("<I", 0),  # no unmapped pfns
            bytes(CONTEXT_BYTES),
            bytes(PAGE),  # shared info
        )
    )


def batches(mib: int, *, scattered: bool) -> list[bytes]:
    """Return the header of every batch: marker and entries, all of type NOTAB."""
    nr_pages = mib * 256
    headers = []
    for first in range(0, nr_pages, BATCH):
        last = min(first + BATCH, nr_pages)
        pfns: range | list[int] = range(first, last)
        if scattered:
            pfns = [index * STRIDE % nr_pages for index in pfns]
        headers.append(struct.pack("<i", last - first) + array("Q", pfns).tobytes())
    return headers


def send(sock: socket.socket, mib: int, kind: str, *, as_xend: bool = False) -> None:
    """Send it all, once the receiver has said go; as a xend, ask and await the verdict."""
    block, zeros = os.urandom(BATCH * PAGE), bytes(BATCH * PAGE)
    headers = [] if kind == "raw" else batches(mib, scattered=kind == "scattered")
    sock.recv(len(READY) if as_xend else 1, socket.MSG_WAITALL if as_xend else 0)
    if kind == "raw":
        for _ in range(mib // 4):
            sock.sendall(block)
        return
    sock.sendall(opening(mib))
    for number, header in enumerate(headers):
        is_empty = kind == "sparse" and number % SPARSE
        _send_both(sock, header, zeros if is_empty else block)
    sock.sendall(closing())
    if as_xend:
        sock.shutdown(socket.SHUT_WR)
        verdict = sock.recv(1024)
        assert verdict == b"(ok)\n", verdict


def _send_both(sock: socket.socket, header: bytes, block: bytes) -> None:
    if isinstance(sock, ssl.SSLSocket):
        sock.sendall(header)
        sock.sendall(block)
        return
    sent = sock.sendmsg((header, block))
    if sent < len(header):
        sock.sendall(header[sent:])
        sent = len(header)
    sock.sendall(memoryview(block)[sent - len(header) :])


def main() -> None:
    port, mib, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    with socket.create_connection(("127.0.0.1", port)) as sock:
        if "tls" in sys.argv[4:]:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            with context.wrap_socket(sock) as wrapped:
                send(wrapped, mib, kind)
        elif "xend" in sys.argv[4:]:
            sock.sendall(b"receive\n")
            send(sock, mib, kind, as_xend=True)
        else:
            send(sock, mib, kind)


if __name__ == "__main__":
    main()
