"""Plays the receiver of each old xend release: what it answers, and whether its restore succeeds.

Sources: relocate.py and XendCheckpoint.py, Xen 3.1 - 4.4.4; what a real 4.4.4 answered (ok after
the stream and the sender's end; err and close otherwise). `payload` is everything that came
behind `receive`, decoded by this project's own reader of relocations.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from dataclasses import dataclass, field
from typing import Any

from tests.drive import Recorder, drive_bytes
from xendpy.errors import StreamTruncated
from xendpy.guest.domain import DomainConfig
from xendpy.stream.records import StreamStart
from xendpy.stream.xend import decode_body, read_envelope

READY = b"(ready receive)\n"
TYPE = "<class 'xen.xend.XendError.XendError'>"
HELP = {
    "3.1": b"(ok (help quit receive))\n",
    "3.2": b"(ok (help quit receive))\n",
    "3.4": b"(ok (help quit receive sslreceive))\n",
    "4.0": b"(ok (help quit receive sslreceive))\n",
    "4.1": b"(ok (help quit receive sslreceive))\n",
    "4.4": b"(ok (help quit receive sslreceive))\n",
}


class OtherWidth(Exception):
    """The stream is for tools of another width."""


@dataclass
class Received:
    """One relocation that came in."""

    payload: bytes
    config: DomainConfig | None = None
    pages: dict[int, str] = field(default_factory=dict)
    records: list[Any] = field(default_factory=list)


@dataclass
class XendReceiver:
    """Listens while in its `with` block.

    `behaviour`: "ok" restores; "refuse" says err right after the first bytes, closes, and reads
    no further; "err" says err after the whole stream; "silent" reads it all and never answers;
    "close" reads it all and closes without a word. `tls`: it listens for sslreceive. `tools`: how
    many bits they have; it can make nothing of a stream for the others.
    """

    release: str = "4.4"
    behaviour: str = "ok"
    address: str = "127.0.0.1"
    text: str = "Restore failed"
    received: list[Received] = field(default_factory=list)
    port: int = 0
    tls: ssl.SSLContext | None = None
    tools: int = 64

    def __enter__(self) -> XendReceiver:
        self._listener = socket.create_server((self.address, 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(80)
        for sock in self._open:
            sock.close()

    def peer_row(self, name: str = "oldhost") -> str:
        """Return the configuration's line about this host."""
        release = "4.2+" if self.release == "4.4" else self.release
        where = f"(address {self.address}) (port {self.port}) (release {release})"
        if self.tools != 64:
            where += f" (tools {self.tools})"
        return f"(xendpy-peer {name} {where})\n"

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(sock)
            sock.settimeout(80)
            try:
                if self.tls is not None:
                    sock = self.tls.wrap_socket(sock, server_side=True)
                    self._open.append(sock)
                self._talk(sock)
            except OSError:  # the sender went away, as senders do
                sock.close()

    def _talk(self, sock: socket.socket) -> None:
        line = b""
        while piece := sock.recv(1):
            line += piece
            if piece != b"\n":
                continue
            if line == b"receive\n":
                sock.sendall(READY)
                self._receive(sock)
                return
            sock.sendall(HELP[self.release] if line == b"help\n" else b"(ok)\n")
            line = b""
        sock.close()

    def _receive(self, sock: socket.socket) -> None:
        if self.behaviour == "refuse":
            sock.recv(4096)
            self._error(sock)
            return
        payload = bytearray()
        while piece := sock.recv(1 << 20):
            payload += piece
        try:
            self.received.append(self._restore(bytes(payload)))
        except (StreamTruncated, OtherWidth):
            self._error(sock)
            return
        if self.behaviour == "ok":
            sock.sendall(b"(ok)\n")
        elif self.behaviour == "err":
            self._error(sock)
        if self.behaviour != "silent":
            sock.close()

    def _error(self, sock: socket.socket) -> None:
        sock.sendall(f"(err (type \"{TYPE}\") (value '{self.text}'))\n".encode())
        sock.close()

    def _restore(self, payload: bytes) -> Received:
        sink = Recorder()
        envelope, offset = drive_bytes(read_envelope(), payload, sink)
        config = DomainConfig.parse(envelope.config_bytes)
        _, length = drive_bytes(decode_body(config.guest_type), payload[offset:], sink)
        assert offset + length == len(payload), "bytes follow the end of the stream"
        (start,) = [record for record in sink.records if isinstance(record, StreamStart)]
        if start.tool_width * 8 != self.tools:
            raise OtherWidth
        return Received(payload, config, digests(sink), list(sink.records))


def digests(sink: Recorder) -> dict[int, str]:
    """Return the sha256 of every page that came, by pfn."""
    return {pfn: hashlib.sha256(page).hexdigest() for pfn, page in sink.memory.items()}
