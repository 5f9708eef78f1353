"""As much HTTP as XML-RPC clients of twenty years speak: POST with a Content-Length.

Spec: RFC 9112, and what Python's xmlrpclib of 2.3 to 3.x sends. HTTP/1.0 and 1.1, persistent
connections, `Expect: 100-continue`; no chunked bodies, no compression: a client must say how long
its body is. Every wait has a deadline and every size a limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

MAX_BODY = 16 << 20  # bytes; a domain with a thousand devices is below 2 MiB
MAX_LINE = 8192
MAX_HEADER_LINES = 100
HEADER_DEADLINE_S = 30.0
BODY_DEADLINE_S = 60.0
IDLE_DEADLINE_S = 300.0
WRITE_DEADLINE_S = 60.0

log = logging.getLogger(__name__)

Handler = Callable[[bytes], Awaitable[bytes]]


class _Refused(Exception):
    """A request that gets an error status, after which the connection closes."""

    def __init__(self, status: HTTPStatus, reason: str = "") -> None:
        super().__init__(reason or status.phrase)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, deadlines in seconds."""

    body: int = MAX_BODY
    header_s: float = HEADER_DEADLINE_S
    body_s: float = BODY_DEADLINE_S
    idle_s: float = IDLE_DEADLINE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    length: int
    keep_alive: bool
    expects_continue: bool


async def serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handler: Handler,
    *,
    paths: tuple[str, ...] = ("/", "/RPC2"),
    limits: Limits = Limits(),
) -> None:
    """Answer the POST requests of one connection, until either side has had enough.

    `handler` gets a body and returns the `text/xml` reply; it raises nothing but cancellation.
    `reader` must have been made with a limit of at least MAX_LINE.
    """
    try:
        while await _exchange(reader, writer, handler, paths, limits):
            pass
    except (ConnectionError, TimeoutError, asyncio.IncompleteReadError) as error:
        log.debug("connection ended: %s", error)
    finally:
        writer.close()


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handler: Handler,
    paths: tuple[str, ...],
    limits: Limits,
) -> bool:
    """Answer one request and say whether the connection stays open."""
    try:
        request = await _request(reader, paths, limits)
        if request is None:
            return False
        if request.expects_continue:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async with asyncio.timeout(limits.body_s):
            body = await reader.readexactly(request.length)
    except _Refused as refused:
        await _reply(writer, refused.status, f"{refused}\n".encode(), False, "text/plain")
        return False
    await _reply(writer, HTTPStatus.OK, await handler(body), request.keep_alive, "text/xml")
    return request.keep_alive


async def _request(
    reader: asyncio.StreamReader, paths: tuple[str, ...], limits: Limits
) -> _Request | None:
    """Read one request up to its body; None when the client is done or stays silent."""
    try:
        async with asyncio.timeout(limits.idle_s):
            first = await _line(reader)
    except TimeoutError:
        return None
    if not first:
        return None
    async with asyncio.timeout(limits.header_s):
        words = first.split()
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise _Refused(HTTPStatus.BAD_REQUEST, "bad request line")
        headers = await _headers(reader)
    method, path, version = words
    if method != "POST":
        raise _Refused(HTTPStatus.NOT_IMPLEMENTED, f"Unsupported method ({method[:20]!r})")
    if path not in paths:
        raise _Refused(HTTPStatus.NOT_FOUND, "No such page")
    connection = headers.get("connection", "").lower()
    return _Request(
        length=_length(headers, limits.body),
        keep_alive=connection != "close" and (version != "HTTP/1.0" or connection == "keep-alive"),
        expects_continue=headers.get("expect", "").lower() == "100-continue",
    )


async def _line(reader: asyncio.StreamReader) -> str:
    try:
        line = await reader.readline()
    except ValueError:  # StreamReader's word for a line beyond its limit
        raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from None
    if len(line) > MAX_LINE:
        raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if line and not line.endswith(b"\n"):
        raise asyncio.IncompleteReadError(line, None)
    return line.decode("latin-1")


async def _headers(reader: asyncio.StreamReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADER_LINES):
        line = await _line(reader)
        if not line:
            raise asyncio.IncompleteReadError(b"", None)
        text = line.rstrip("\r\n")
        if not text:
            return headers
        name, colon, value = text.partition(":")
        if not colon or not name or name != name.strip():
            raise _Refused(HTTPStatus.BAD_REQUEST, "bad header line")
        name = name.lower()
        if name in ("content-length", "transfer-encoding") and name in headers:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"two {name} headers")
        headers[name] = value.strip()
    raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)


def _length(headers: dict[str, str], limit: int) -> int:
    text = headers.get("content-length")
    if text is None or "transfer-encoding" in headers:
        raise _Refused(HTTPStatus.LENGTH_REQUIRED)
    if not text.isascii() or not text.isdigit():
        raise _Refused(HTTPStatus.BAD_REQUEST, "bad Content-Length")
    if len(text) > 12 or int(text) > limit:
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return int(text)


async def _reply(
    writer: asyncio.StreamWriter, status: HTTPStatus, body: bytes, keep_alive: bool, kind: str
) -> None:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Server: xendpy\r\n"
        f"Date: {formatdate(usegmt=True)}\r\n"
        f"Content-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
    )
    writer.writelines((head.encode("latin-1"), body))
    async with asyncio.timeout(WRITE_DEADLINE_S):
        await writer.drain()
