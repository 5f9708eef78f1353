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
    assert read_config(text, "f") == values


def test_variables_of_the_command_line_are_known() -> None:
    assert read_config("name = 'vm%d' % vmid", "f", {"vmid": 3}) == {"name": "vm3"}


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
        read_config(text, "f")
