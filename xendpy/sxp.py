"""xend's s-expression dialect: parse, print, look up.

Source: sxp.py of Xen 3.0.3 - 4.4. Everything is a string or a list; `'...'` and `"..."` delimit
strings, `#` starts a comment anywhere outside one, a byte 0x04 between tokens ends the input. An
atom begins with printable ASCII and goes on, whatever the byte, up to a blank, `#` or a bracket.
Text stands for bytes, one character each (latin-1), so that every byte survives a round trip.

Where xend's parser had a bug, what was meant is parsed and a warning given: `\\x4a` (xend took a-f
for 0-5), and a backslash before a character it does not know (xend dropped that character).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import sexpdata

from xendpy.errors import SxpError

SxpValue: TypeAlias = "str | int | float | bool | list[SxpValue] | None"
SxpList: TypeAlias = "list[SxpValue]"

MAX_DEPTH = 64
MAX_BYTES = 1 << 20
DEEPEST = 200  # no depth limit goes above: a level costs two frames of Python's stack
MAX_ODDITIES = 100  # more of them are not remembered: the text may be a peer's

BLANKS = " \t\n\v\f\r"
QUOTES = "'\""
ATOM_END = re.compile(r"[ \t\n\v\f\r#{}()<>\[\];]")
_SPECIAL = {"'": re.compile(r"['\\]"), '"': re.compile(r'["\\]')}
_SIMPLE_ESCAPES = {
    "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r",
    "\\": "\\", "'": "'", '"': '"',
}  # fmt: skip
_OCTAL = re.compile(r"[0-7]{1,3}")
_HEX = re.compile(r"[0-9A-Fa-f]{2}")
_ATOM = re.compile(r"[A-Za-z0-9.\-_:/~]+|@")  # what is printed without quotes
END_OF_INPUT = "\x04"


@dataclass(frozen=True, slots=True)
class Form:
    """One top-level value and where it begins; line and column are 1-based."""

    value: SxpValue
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something xend would have read otherwise, or dropped."""

    line: int
    column: int
    text: str


class Parser(sexpdata.Parser):  # type: ignore[misc]  # sexpdata has no types
    """sexpdata's recursive descent, with xend's tokens, a depth limit and positions."""

    def __init__(self, text: str, *, max_depth: int = MAX_DEPTH) -> None:
        super().__init__(text, line_comment="#")
        self.text = text
        self.oddities: list[Oddity] = []
        self._newlines: list[int] | None = None
        self._max_depth = min(max_depth, DEEPEST)
        self._depth = 0

    def forms(self) -> Iterator[Form]:
        """Yield the top-level values.

        Raises:
            SxpError: at the place where it stops to be a s-expression.
        """
        i = self._skip(0)
        while i < len(self.text) and self.text[i] != END_OF_INPUT:
            start = i
            try:
                i, value = self.parse_value(i)
            except _CutShort:
                # xend drops an unfinished last form silently if the file ends within an atom.
                self._odd(start, "the last form is not closed: ignored")
                return
            yield Form(value, *self.place(start))
            i = self._skip(i)

    def place(self, i: int) -> tuple[int, int]:
        """Return line and column of the character at `i`."""
        if self._newlines is None:
            self._newlines = [match.start() for match in re.finditer("\n", self.text)]
        before = bisect_left(self._newlines, i)
        return before + 1, i - (self._newlines[before - 1] if before else -1)

    def parse_value(self, i: int) -> tuple[int, SxpValue]:
        """Return the value that begins at `i`, and the index behind it."""
        char = self.text[i]
        if char == "(":
            end, values = self.parse_sexp(i + 1)
            return end, values
        if char in QUOTES:
            return self.parse_str(i)
        if char == ")":
            self._fail("syntax error: )", i)
        if not " " < char <= "~":
            self._fail(f"invalid character: code {ord(char)}", i)
        return self.parse_atom(i)

    def parse_sexp(self, i: int) -> tuple[int, SxpList]:
        """Return the list whose first element begins at or after `i`, up to its bracket."""
        self._depth += 1
        if self._depth > self._max_depth:
            self._fail(f"lists nested deeper than {self._max_depth}", i)
        values: SxpList = []
        opened = i - 1
        i = self._skip(i)
        while i < len(self.text) and self.text[i] not in (")", END_OF_INPUT):
            i, value = self.parse_value(i)
            values.append(value)
            i = self._skip(i)
        if i >= len(self.text) or self.text[i] == END_OF_INPUT:
            line, column = self.place(opened)
            self._fail(
                f"unexpected EOF: the list of line {line}, column {column}, is not closed", i
            )
        self._depth -= 1
        return i + 1, values

    def parse_atom(self, i: int) -> tuple[int, str]:
        """Return the atom that begins at `i`: always a string, whatever it looks like."""
        match = ATOM_END.search(self.text, i + 1)
        if match is None and self._depth:
            raise _CutShort
        end = match.start() if match else len(self.text)
        return end, self.text[i:end]

    def parse_str(self, i: int) -> tuple[int, str]:
        """Return the quoted string that begins at `i`, its escapes resolved."""
        special, start, parts = _SPECIAL[self.text[i]], i, []
        i += 1
        while match := special.search(self.text, i):
            parts.append(self.text[i : match.start()])
            if match.group() != "\\":
                return match.end(), "".join(parts)
            i, char = self._escape(match.end())
            parts.append(char)
        self._fail("unexpected EOF: this string is not closed", start)

    def _escape(self, i: int) -> tuple[int, str]:
        char = self.text[i : i + 1]
        if not char:
            self._fail("unexpected EOF", i)
        if char in _SIMPLE_ESCAPES:
            return i + 1, _SIMPLE_ESCAPES[char]
        if match := _OCTAL.match(self.text, i):
            if int(match.group(), 8) > 0xFF:
                self._fail(f"invalid octal escape: out of range {match.group()}", i)
            return match.end(), chr(int(match.group(), 8))
        if char == "x":
            match = _HEX.match(self.text, i + 1)
            if match is None:
                self._fail("invalid hex escape: expected two hex digits", i)
            if not match.group().isdigit():
                self._odd(i - 1, f"\\x{match.group()}: xend itself takes a-f for 0-5 here")
            return match.end(), chr(int(match.group(), 16))
        self._odd(i - 1, f"\\{char} is no escape: xend drops the '{char}'; write \\\\{char}")
        return i + 1, "\\" + char

    def _skip(self, i: int) -> int:
        while i < len(self.text):
            if self.text[i] == "#":
                end = self.text.find("\n", i)
                i = len(self.text) if end < 0 else end
            elif self.text[i] in BLANKS:
                i += 1
            else:
                break
        return i

    def _odd(self, i: int, text: str) -> None:
        if len(self.oddities) < MAX_ODDITIES:
            self.oddities.append(Oddity(*self.place(i), text))

    def _fail(self, reason: str, i: int) -> NoReturn:
        line, column = self.place(i)
        raise SxpError(reason, line=line, column=column)


class _CutShort(Exception):
    # The input ends within an atom inside a list.
    pass


def parse_forms(
    text: str, *, max_depth: int = MAX_DEPTH, max_bytes: int = MAX_BYTES
) -> tuple[list[Form], list[Oddity]]:
    """Return the top-level values of `text` with their places, and what is odd about it.

    Raises:
        SxpError: it is no s-expression, too deep, or longer than `max_bytes`.
    """
    if len(text) > max_bytes:
        raise SxpError(f"{len(text)} bytes are more than the {max_bytes} allowed")
    parser = Parser(text, max_depth=max_depth)
    return list(parser.forms()), parser.oddities


def parse(text: str, *, max_depth: int = MAX_DEPTH, max_bytes: int = MAX_BYTES) -> SxpList:
    """Return the top-level values of `text`; errors as `parse_forms`."""
    forms, _ = parse_forms(text, max_depth=max_depth, max_bytes=max_bytes)
    return [form.value for form in forms]


def parse_one(
    data: bytes | str, *, max_depth: int = MAX_DEPTH, max_bytes: int = MAX_BYTES
) -> SxpList:
    """Return the first value of `data`, which must be a list; what follows it is ignored.

    xend ignores it too (XendCheckpoint.py restore).
    """
    text = data.decode("latin-1") if isinstance(data, bytes) else data
    if len(text) > max_bytes:
        raise SxpError(f"{len(text)} bytes are more than the {max_bytes} allowed")
    for form in Parser(text, max_depth=max_depth).forms():
        if isinstance(form.value, list):
            return form.value
        raise SxpError(f"expected a list, not {show(form.value)}", line=form.line)
    raise SxpError("expected a list, found nothing")


def show(value: Any) -> str:
    """Print a value by xend's rule (sxp.py show of 4.1 and later).

    Lists, atoms, ints, floats and booleans bare; any other string quoted as Python 2 would.
    """
    match value:
        case list() | tuple():
            return "(" + " ".join(show(item) for item in value) + ")"
        case float():
            return _float(value)
        case bool() | int():
            return str(value)
        case None:
            return "'None'"
        case str() if _ATOM.fullmatch(value):
            return value
        case str():
            return quoted(value)
        case _:
            raise TypeError(f"{type(value).__name__} has no place in a s-expression")


def _float(value: float) -> str:
    text = f"{value:.12g}"  # what str() made of a float in Python 2
    return text if any(char in text for char in ".en") else text + ".0"


_PLAIN_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED = {"'": re.compile(r"[^ -&(-\[\]-~]"), '"': re.compile(r"[^ !#-\[\]-~]")}


def quoted(text: str) -> str:
    """Return `text` in quotes: single ones, unless it holds those and no double ones."""
    quote = '"' if "'" in text and '"' not in text else "'"
    return quote + _ESCAPED[quote].sub(_escaped, text) + quote


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    if char in QUOTES:
        return "\\" + char
    return _PLAIN_ESCAPES.get(char) or "".join(f"\\x{byte:02x}" for byte in _bytes_of(char))


def _bytes_of(char: str) -> bytes:
    return char.encode("latin-1") if ord(char) < 0x100 else char.encode()


def encode(value: SxpValue) -> bytes:
    """Return a value printed, as bytes for a file or a wire."""
    return show(value).encode("ascii")


def pretty(value: SxpValue, width: int = 80, indent: int = 0) -> str:
    """Print a value as `xm list -l` does: on one line if it fits, else an element a line."""
    line = show(value)
    if not isinstance(value, list) or not value or indent + len(line) <= width:
        return " " * indent + line + "\n"
    head, rest = value[0], value[1:]
    first = " " * indent + "(" + show(head) + "\n"
    body = "".join(pretty(item, width, indent + 4) for item in rest)
    return first + body + " " * indent + ")\n"


def children(tree: SxpValue, name: str) -> Iterator[SxpList]:
    """Yield the child lists of `tree` whose first element is `name`."""
    if not isinstance(tree, list):
        return
    for item in tree[1:]:
        if isinstance(item, list) and item and item[0] == name:
            yield item


def child(tree: SxpValue, name: str) -> SxpList | None:
    """Return the first child list whose first element is `name`."""
    return next(children(tree, name), None)


def child_text(tree: SxpValue, name: str) -> str:
    """Return the value of the first child list `name` if it is text, else an empty one."""
    value = child_value(tree, name)
    return value if isinstance(value, str) else ""


def child_value(tree: SxpValue, name: str, default: SxpValue = None) -> SxpValue:
    """Return the value of the first child list `name`: its second element, attributes skipped."""
    entry = child(tree, name)
    if entry is None:
        return default
    values = entry[1:]
    if values and isinstance(values[0], list) and values[0] and values[0][0] == "@":
        values = values[1:]
    return values[0] if values else default
