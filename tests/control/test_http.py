from __future__ import annotations

import asyncio
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pytest

from xendpy.control import http

LIMITS = http.Limits(body=1000, header_s=5, body_s=5, idle_s=5)
POST = b"POST /RPC2 HTTP/1.1\r\n"


@dataclass(frozen=True)
class Case:
    id: str
    sent: bytes
    status: bytes


REFUSED = [
    Case("get", b"GET /RPC2 HTTP/1.1\r\n\r\n", b"501"),
    Case("other-path", b"POST /xend HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"404"),
    Case("no-length", POST + b"\r\n", b"411"),
    Case("chunked", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", b"411"),
    Case("negative-length", POST + b"Content-Length: -1\r\n\r\n", b"400"),
    Case("hex-length", POST + b"Content-Length: 0x10\r\n\r\n", b"400"),
    Case("two-lengths", POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
    Case("body-over-limit", POST + b"Content-Length: 1001\r\n\r\n", b"413"),
    Case("absurd-length", POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n", b"413"),
    Case("not-http", b"receive\n", b"400"),
    Case("http-2", b"PRI * HTTP/2.0\r\n\r\n", b"400"),
    Case("header-without-colon", POST + b"nonsense\r\n\r\n", b"400"),
    Case("folded-header", POST + b"A: b\r\n c\r\n\r\n", b"400"),
    Case("blank-before-colon", POST + b"Content-Length : 0\r\n\r\n", b"400"),
    Case("long-line", POST + b"A: " + b"x" * 9000 + b"\r\n\r\n", b"431"),
    Case("many-headers", POST + b"A: b\r\n" * 101 + b"\r\n", b"431"),
]


class Server:
    """Echoes bodies on a unix socket; `seen` are those that reached the handler."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def handle(self, body: bytes) -> bytes:
        self.seen.append(body)
        return b"<" + body + b">"

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await http.serve(reader, writer, self.handle, limits=LIMITS)


async def talk(tmp_path: Path, sent: bytes) -> tuple[bytes, Server]:
    """Send bytes, half-close, and return all that comes back."""
    server = Server()
    path = str(tmp_path / "s")
    async with await asyncio.start_unix_server(server.connected, path, limit=http.MAX_LINE):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(sent)
        writer.write_eof()
        async with asyncio.timeout(80):
            answer = await reader.read()
        writer.close()
    return answer, server


@pytest.mark.parametrize("case", REFUSED, ids=attrgetter("id"))
async def test_bad_request_is_refused_and_the_connection_closed(
    case: Case, tmp_path: Path
) -> None:
    answer, server = await talk(tmp_path, case.sent + POST + b"Content-Length: 1\r\n\r\nx")
    assert answer.startswith(b"HTTP/1.1 " + case.status + b" ")
    assert b"\r\nConnection: close\r\n" in answer
    assert server.seen == []


async def test_requests_follow_each_other_on_one_connection(tmp_path: Path) -> None:
    request = POST + b"content-length: 3\r\n\r\n"
    answer, server = await talk(tmp_path, request + b"one" + request + b"two")
    assert server.seen == [b"one", b"two"]
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert answer.endswith(b"<two>")


@pytest.mark.parametrize(
    ("head", "answers"),
    [
        (b"POST /RPC2 HTTP/1.0\r\n", 1),
        (b"POST /RPC2 HTTP/1.0\r\nConnection: keep-alive\r\n", 2),
        (b"POST /RPC2 HTTP/1.1\r\nConnection: close\r\n", 1),
        (b"POST / HTTP/1.1\r\n", 2),
        (b"POST /RPC2 HTTP/1.1\n", 2),
    ],
)
async def test_connection_lives_as_the_version_says(
    head: bytes, answers: int, tmp_path: Path
) -> None:
    request = head + b"Content-Length: 1\r\n\r\nx"
    answer, server = await talk(tmp_path, request * 2)
    assert len(server.seen) == answers
    assert answer.count(b"200 OK") == answers


async def test_client_that_expects_continue_is_told_to_go_on(tmp_path: Path) -> None:
    request = POST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx"
    answer, _ = await talk(tmp_path, request)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "sent", [b"", POST, POST + b"Content-Length: 5\r\n\r\nab", POST + b"Content-Le"]
)
async def test_connection_that_ends_early_reaches_nobody(sent: bytes, tmp_path: Path) -> None:
    answer, server = await talk(tmp_path, sent)
    assert answer == b""
    assert server.seen == []


async def test_silent_client_is_let_go(tmp_path: Path) -> None:
    limits = http.Limits(body=10, header_s=0.01, body_s=0.01, idle_s=0.01)
    ended: list[bool] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await http.serve(reader, writer, Server().handle, limits=limits)
        ended.append(True)

    path = str(tmp_path / "s")
    async with await asyncio.start_unix_server(connected, path):
        for sent in (b"", POST, POST + b"Content-Length: 5\r\n\r\n"):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(sent)
            async with asyncio.timeout(80):
                assert await reader.read() == b""
            writer.close()
    assert ended == [True] * 3
