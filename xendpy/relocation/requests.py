"""S-expressions out of a byte stream, one by one, without a byte too many.

Source: sxp.py and connection.py, Xen 3.0.3 - 4.4. A value counts when it is complete: an atom with
the byte that ends it. xend read on to the end of what one `recv` gave; here the bytes behind a
value stay unread, for they may be a payload.
"""

from __future__ import annotations

import re
from typing import NoReturn

from xendpy.errors import SxpError
from xendpy.sxp import (
    ATOM_END,
    DEEPEST,
    END_OF_INPUT,
    MAX_DEPTH,
    QUOTES,
    Parser,
    SxpValue,
)

# The next byte that tells something, by what it is in: nothing, an atom, a comment, a string, or
# a string with a backslash before it. What comes before it is passed over in one step: a flood of
# bytes that lead to nothing is to cost little.
_TELLS = {
    "": re.compile(rb"[^ \t\n\v\f\r]"),
    "atom": re.compile(ATOM_END.pattern.encode()),
    "comment": re.compile(rb"\n"),
    "'": re.compile(rb"['\\]"),
    '"': re.compile(rb'["\\]'),
    "'\\": re.compile(rb"(?s:.)"),
    '"\\': re.compile(rb"(?s:.)"),
}


class IncrementalParser:
    """Values from a byte stream, as they become complete; never takes a byte beyond one.

    After a SxpError what was fed so far is dropped, as xend does, and parsing can go on, unless
    `ended`: the stream is over, by a byte 0x04 or because a value is over a limit.
    """

    def __init__(self, *, max_depth: int = MAX_DEPTH, max_bytes: int = 1 << 16) -> None:
        self._pending = bytearray()
        self._scanned = 0  # bytes of the pending value that are known not to end it
        self._depth = 0
        self._inside = ""  # a key of _TELLS
        self._atom_at = -1  # where the value begins, if it is an atom
        self._line, self._column = 1, 1  # of the first pending byte
        self._max_depth = min(max_depth, DEEPEST)
        self._max_bytes = max_bytes
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Take bytes in."""
        self._pending += data

    @property
    def unread(self) -> bytes:
        """The bytes behind the last value returned."""
        return bytes(self._pending)

    def next(self) -> SxpValue:
        """Return the next complete value, None while there is none.

        Raises:
            SxpError: a byte that cannot be there, or a value over the limits; with line and
                column in the stream.
        """
        reach = self._max_bytes + 1  # of the byte that ends the longest value
        while not self.ended and self._scanned < min(len(self._pending), reach):
            found = _TELLS[self._inside].search(self._pending, self._scanned, reach)
            if found is None:
                self._scanned = min(len(self._pending), reach)
                break
            end = self._look(found.start())
            if end is not None:
                return self._take(end)
        if not self.ended and self._scanned == reach:
            self._give_up(f"value longer than {self._max_bytes} bytes")
        return None

    def _take(self, end: int) -> SxpValue:
        text = self._pending[:end].decode("latin-1")
        if self._atom_at >= 0:
            value: SxpValue = text[self._atom_at :]
        else:
            value = self._parse(text + "\n")
        self._consume(end)
        return value

    def _parse(self, text: str) -> SxpValue:
        try:
            return next(Parser(text, max_depth=self._max_depth).forms()).value
        except SxpError as error:
            line = self._line + error.line - 1
            column = error.column + (self._column - 1 if error.line == 1 else 0)
            self._consume(len(self._pending))
            raise SxpError(error.reason, line=line, column=column) from error

    def _look(self, here: int) -> int | None:
        """Look at the byte `here`; return the length of the value if it completes one."""
        char = chr(self._pending[here])
        self._scanned = here + 1
        match self._inside:
            case "":
                return self._outside(char, here)
            case "atom":
                self._inside = ""
                if not self._depth:
                    return here
                self._scanned = here  # looked at again, as what it is outside an atom
            case "comment":
                self._inside = ""
            case "'" | '"' as quote:
                self._inside = quote + "\\" if char == "\\" else ""
                return here + 1 if char == quote and not self._depth else None
            case escaped:
                self._inside = escaped[0]
        return None

    def _outside(self, char: str, here: int) -> int | None:
        if char == "#":
            self._inside = "comment"
        elif char in QUOTES:
            self._inside = char
        elif char == "(":
            self._depth += 1
            if self._depth > self._max_depth:
                self._give_up(f"lists nested deeper than {self._max_depth}")
        elif char == ")" and self._depth:
            self._depth -= 1
            return None if self._depth else here + 1
        elif char == ")":
            self._fail("syntax error: )")
        elif char == END_OF_INPUT:
            self.ended = True
        elif not " " < char <= "~":
            self._fail(f"invalid character: code {ord(char)}")
        else:
            self._inside = "atom"
            self._atom_at = -1 if self._depth else here
        return None

    def _consume(self, count: int) -> None:
        """Forget the first `count` pending bytes and look at what follows them afresh."""
        newlines = self._pending.count(b"\n", 0, count)
        self._line += newlines
        if newlines:
            self._column = count - self._pending.rfind(b"\n", 0, count)
        else:
            self._column += count
        del self._pending[:count]
        self._scanned, self._depth, self._inside, self._atom_at = 0, 0, "", -1

    def _give_up(self, reason: str) -> NoReturn:
        self.ended = True
        self._fail(reason)

    def _fail(self, reason: str) -> NoReturn:
        # xend gives up the whole chunk that a bad byte came in.
        self._consume(self._scanned - 1)
        line, column = self._line, self._column
        self._consume(len(self._pending))
        raise SxpError(reason, line=line, column=column)
