"""xm's configuration files: what they say, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from xendpy.cli.xmconfig import read_config
from xendpy.errors import ConfigError

GOOD: list[tuple[str, str, dict[str, Any]]] = [
    ("empty", "", {}),
    ("comments", '# one\n\'two\'\n"""three"""\n', {}),
    ("literals", "a = 1\nb = 'x'\nc = 1.5\nd = -2", {"a": 1, "b": "x", "c": 1.5, "d": -2}),
    ("lists", "disk = [ 'a', 'b' ]\nt = ('x', 1)", {"disk": ["a", "b"], "t": ("x", 1)}),
    ("names", "n = 'web1'\np = [n, n]", {"n": "web1", "p": ["web1", "web1"]}),
    ("concatenation", "a = 'x' 'y'\nb = a + 'z'", {"a": "xy", "b": "xyz"}),
    ("lists-joined", "a = ['x'] + ['y']", {"a": ["x", "y"]}),
    ("format", "n = 7\na = 'vm%d' % n", {"n": 7, "a": "vm7"}),
    ("format-tuple", "a = '%s-%02d' % ('vm', 7)", {"a": "vm-07"}),
    ("format-dict", "a = '%(x)s' % {'x': 'y'}", {"a": "y"}),
    ("arithmetic", "a = 2 * 512 + 7 / 2", {"a": 1027}),
    ("augmented", "a = 'x'\na += 'y'", {"a": "xy"}),
    ("two-targets", "a = b = 3", {"a": 3, "b": 3}),
    ("booleans", "a = True\nb = None", {"a": True, "b": None}),
    ("backslash", "a = 'x' \\\n  'y'", {"a": "xy"}),
]


@pytest.mark.parametrize(("text", "values"), [row[1:] for row in GOOD], ids=[r[0] for r in GOOD])
def test_file(text: str, values: dict[str, Any]) -> None:
    assert read_config(text.encode(), "f") == values


UE = "a = 'T\u00fcr'\n"
ENCODED: list[tuple[str, bytes, str]] = [
    ("utf-8", UE.encode(), "T\u00fcr"),
    ("bom", b"\xef\xbb\xbf" + UE.encode(), "T\u00fcr"),
    ("latin-1", UE.encode("latin-1"), "T\u00fcr"),
    ("latin-1-comment", b"# f\xfcr\n" + UE.encode("latin-1"), "T\u00fcr"),
    ("cookie", b"# -*- coding: latin-1 -*-\n" + UE.encode("latin-1"), "T\u00fcr"),
    ("cookie-over-utf-8", b"# coding=latin-1\n" + UE.encode(), "T\u00c3\u00bcr"),
    ("cookie-below", b"#!/x\r\n# coding: cp1252\r\na = '\x80'\r\n", "\u20ac"),
    ("cookie-too-late", b"a = 1\n# coding: cp437\n" + UE.encode("latin-1"), "T\u00fcr"),
]


@pytest.mark.parametrize(
    ("source", "value"), [row[1:] for row in ENCODED], ids=[row[0] for row in ENCODED]
)
def test_encoding(source: bytes, value: str) -> None:
    assert read_config(source, "f") == {"a": value}


def test_line_that_the_cookie_denies_is_named() -> None:
    source = b"# coding: utf-8\n\na = '\xfc'\n"
    with pytest.raises(ConfigError, match=r"f:3: .*'utf-8' codec can't decode byte 0xfc"):
        read_config(source, "f")


def test_unknown_cookie_is_refused() -> None:
    with pytest.raises(ConfigError, match="f: unknown encoding: klingon"):
        read_config(b"# coding: klingon\n", "f")


def test_variables_of_the_command_line_are_known() -> None:
    assert read_config(b"name = 'vm%d' % vmid", "f", {"vmid": 3}) == {"name": "vm3"}


BAD = [
    ("import", "\nimport os", "f:2: an import is not an assignment"),
    ("call", "a = open('/etc/passwd')", "f:1: a call is not a literal"),
    ("attribute", "a = ''.join", "f:1: an attribute is not a literal"),
    ("subscript", "a = 'x'[0]", "f:1: a subscript is not a literal"),
    ("if", "if 1: a = 2", "f:1: an if is not an assignment"),
    ("loop", "for i in [1]: a = i", "f:1: a loop is not an assignment"),
    ("expression", "'a'.join([])", "f:1: an expression is not an assignment"),
    ("comprehension", "a = [x for x in [1]]", "f:1: a list comprehension is not a literal"),
    ("f-string", "a = f'{1}'", "f:1: an f-string is not a literal"),
    ("unknown-name", "a = 1\nb = c", "f:2: 'c' is not assigned further up"),
    ("syntax", "a = 1\nb = [1,", "f:2: '[' was never closed"),
    ("octal", "a = 0644", "f:1: leading zeros"),
    ("types", "a = 'x' + 1", "f:1: can only concatenate str"),
    ("bad-format", "a = '%d' % 'x'", "f:1: %d format"),
    ("target", "a = [1]\na[0] = 2", "f:2: only plain names can be assigned"),
    ("tuple-target", "a, b = 1, 2", "f:1: only plain names can be assigned"),
    ("repeat", "a = 'x' * 1000000000", "f:1: 'Mult' of these values is not understood"),
    ("wide", "a = '%99999999d' % 1", "f:1: a format with such a width"),
    ("wide-star", "a = '%*d' % (99999999, 1)", "f:1: a format with such a width"),
    ("division", "a = 1 / 0", "f:1: integer division or modulo by zero"),
    ("power", "a = 9 ** 9 ** 9", "f:1: 'Pow' of these values is not understood"),
    ("grows", "a = 'x'\n" + "a += a\n" * 30, "the value grows too long"),
    ("deep", "a = " + "(" * 5000 + ")" * 5000, "f:1: too many nested parentheses"),
    ("nul", "a = 1\0", "source code string cannot contain null bytes"),
]


@pytest.mark.parametrize(("text", "error"), [row[1:] for row in BAD], ids=[r[0] for r in BAD])
def test_what_is_not_an_assignment_is_refused(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        read_config(text.encode(), "f")
