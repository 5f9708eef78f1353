"""The control phase of the relocation port, and its wire texts; sans-I/O.

Source: relocate.py and connection.py, Xen 3.0.2 - 4.4, and what a real xend 4.4.4 answered. A
request is an atom, a string or a list whose first element is the operation. Unlike xend, bytes
that a hasty peer sent behind `receive` are kept as payload.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias

from xendpy import sxp
from xendpy.errors import HandshakeError, SxpError
from xendpy.relocation.requests import IncrementalParser

OK = b"(ok)\n"
MAX_CONTROL = 1 << 14  # bytes of a whole control phase; they are parsed in the event loop
MAX_VALUE = 1 << 12  # bytes of one request
MAX_BAD = 8  # requests that are none
MAX_REQUESTS = 256  # before the one that takes over; each costs the server some 80 us
MAX_DEPTH = 16
MAX_TEXT = 900  # bytes of an error's text: xend >= 4.0 reads at most 1024 of the line

XEND_ERROR = "<class 'xen.xend.XendError.XendError'>"
PARSE_ERROR = "<class 'xen.xend.sxp.ParseError'>"
_SHOWN = {kind: sxp.show(kind) for kind in (XEND_ERROR, PARSE_ERROR)}
_LINE_END = re.compile(rb"[ \t]*(#[^\n]*)?\r?\n")


@dataclass(frozen=True, slots=True)
class Reply:
    """Bytes to send to the peer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection."""


@dataclass(frozen=True, slots=True)
class Receive:
    """The peer asks for an operation that takes the connection over.

    `leftover` is payload that came with it; `value` is the whole request as parsed.
    """

    op: str
    leftover: bytes
    value: sxp.SxpValue = field(default=None, compare=False)


Action: TypeAlias = Reply | Close | Receive


class Handshake:
    """One connection's control phase; `ops` are the operations that take it over.

    A bad request is answered and the connection goes on; one over a limit is answered and the
    connection closed.
    """

    def __init__(self, ops: Sequence[str] = ("receive",)) -> None:
        self._ops = tuple(ops)
        self._parser = IncrementalParser(max_depth=MAX_DEPTH, max_bytes=MAX_VALUE)
        self._taken = 0
        self._requests = 0
        self._bad = 0

    def feed(self, data: bytes) -> list[Action]:
        """Return what to do about `data`; nothing more is fed after a Receive or a Close."""
        self._taken += len(data)
        self._parser.feed(data)
        actions: list[Action] = []
        while True:
            try:
                value = self._parser.next()
            except SxpError as error:
                self._bad += 1
                actions.append(Reply(error_reply(error.reason, kind=PARSE_ERROR)))
                break
            if value is None:
                break
            self._requests += 1
            if self._requests > MAX_REQUESTS:
                return [*actions, *_enough(f"{MAX_REQUESTS} requests")]
            action = self._dispatch(value)
            actions.append(action)
            if not isinstance(action, Reply):
                return actions
            if self._bad > MAX_BAD:
                break
        if self._bad > MAX_BAD:
            # Each costs a parse and an answer: whoever only sends such is not worth them.
            return [*actions, *_enough(f"{MAX_BAD} bad requests")]
        if self._parser.ended:
            actions.append(Close())
        elif self._taken > MAX_CONTROL:
            actions += _enough(f"{MAX_CONTROL} bytes")
        return actions

    def _dispatch(self, value: sxp.SxpValue) -> Action:
        name = value[0] if isinstance(value, list) and value else value
        if name == "help":
            return Reply(_help(self._ops))
        if name == "quit":
            return Close()
        if isinstance(name, str) and name in self._ops:
            return Receive(name, _behind_line(self._parser.unread), value)
        self._bad += 1
        shown = name if isinstance(name, str) else sxp.show(name)
        return Reply(error_reply(f"Invalid operation: {shown}"))


@cache
def _help(ops: tuple[str, ...]) -> bytes:
    return sxp.encode(["ok", [*sorted({"help", "quit", *ops})]]) + b"\n"


def _enough(count: str) -> list[Action]:
    return [Reply(error_reply(f"no operation within {count}")), Close()]


def _behind_line(data: bytes) -> bytes:
    """Return `data` without the rest of the line that belongs to the request before it."""
    match = _LINE_END.match(data)
    return data[match.end() :] if match else data


def ready(op: str) -> bytes:
    """Return the line that says go on; a xend reads at most 80 bytes of it."""
    return f"(ready {op})\n".encode()


def error_reply(text: str, *, kind: str = XEND_ERROR) -> bytes:
    """Return a control-phase error as xend prints it, quoted by its own rule."""
    return f"(err (type {_SHOWN[kind]}) (value {sxp.show(text)}))\n".encode("ascii")


def refusal(text: str) -> bytes:
    """Return the error line for a peer that has begun its payload.

    xend >= 4.0 finds the text with a pattern that wants single quotes around it and none inside,
    in at most 1024 bytes: quotes, backslashes, line ends and other than ASCII are replaced.
    """
    plain = text.encode("ascii", "replace").decode().replace("'", "").replace('"', "")
    plain = re.sub(r"[\x00-\x1f\x7f\\]+", " ", plain).strip()[:MAX_TEXT] or "no reason given"
    if " " not in plain:
        plain = f"refused: {plain}"
    return f"(err (type {_SHOWN[XEND_ERROR]}) (value '{plain}'))\n".encode()


@dataclass(frozen=True, slots=True)
class Ready:
    """A peer's `(ready OP ...)`; `text` is the whole line."""

    op: str
    text: str


@dataclass(frozen=True, slots=True)
class Ok:
    """A peer's `(ok ...)`; `text` is the whole line."""

    text: str


@dataclass(frozen=True, slots=True)
class Err:
    """A peer's `(err (type T) (value V))`; `text` is V."""

    text: str


def parse_reply(line: bytes) -> Ready | Ok | Err:
    """Return what a peer's line says.

    Raises:
        HandshakeError: it is none of the three forms.
    """
    try:
        value = sxp.parse_one(line, max_depth=MAX_DEPTH)
    except SxpError:
        value = []
    text = line.decode("latin-1").rstrip("\r\n")
    match value:
        case ["ready", str(op), *_]:
            return Ready(op, text)
        case ["ok", *_]:
            return Ok(text)
        case ["err", *_]:
            said = sxp.child_value(value, "value", "no reason given")
            return Err(said if isinstance(said, str) else sxp.show(said))
    raise HandshakeError(
        f"the peer said {text[:80]!r} where (ready ...), (ok ...) or (err ...) was expected",
        line=line,
    )
