"""A daemon that answers XML-RPC calls by a table and remembers them."""

from __future__ import annotations

import socket
import socketserver
import threading
import xmlrpc.client
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

Reply = Any  # a value, a Fault, or a function of the parameters


class FakeXend:
    """Listens on `path`, or on `port` of loopback, while in its `with` block.

    `calls` are (method, parameters).
    """

    def __init__(self, path: Path | None, replies: Mapping[str, Reply]) -> None:
        self.path = path
        self.replies = dict(replies)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._connections: list[socket.socket] = []

    def __enter__(self) -> FakeXend:
        self._server: socketserver.ThreadingTCPServer | socketserver.ThreadingUnixStreamServer
        if self.path is None:
            self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler())
            self.port = self._server.server_address[1]
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._server = socketserver.ThreadingUnixStreamServer(str(self.path), self._handler())
        self._server.daemon_threads = True  # clients may still hold their connections
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if self.path is not None:
            self.path.unlink()

    def hang_up(self) -> None:
        """End every connection, as a daemon does with those that lie idle."""
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def answer(self, body: bytes) -> bytes:
        params, method = xmlrpc.client.loads(body, use_builtin_types=True)
        assert method is not None
        self.calls.append((method, params))
        reply = self.replies.get(
            method, xmlrpc.client.Fault(1, f'method "{method}" is not supported')
        )
        try:
            if callable(reply):
                reply = reply(*params)
        except xmlrpc.client.Fault as fault:
            reply = fault
        if not isinstance(reply, xmlrpc.client.Fault):
            reply = (reply,)
        return xmlrpc.client.dumps(reply, methodresponse=True, allow_none=True).encode()

    def _handler(self) -> Callable[..., BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                fake._connections.append(self.connection)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if isinstance(fake.replies.get("raw"), bytes):
                    fake.calls.append(("raw", ()))
                    self.wfile.write(fake.replies["raw"])
                    self.close_connection = True
                    return
                text = fake.answer(body)
                self.send_response(200)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def fault(code: int, text: str) -> xmlrpc.client.Fault:
    return xmlrpc.client.Fault(code, text)
