"""Values out of a byte stream: whatever the pieces, and not a byte beyond a value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xendpy import sxp
from xendpy.errors import SxpError
from xendpy.relocation.requests import IncrementalParser

BYTES = st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=20)
VALUES = st.recursive(BYTES, lambda inner: st.lists(inner, max_size=5), max_leaves=20)


def read(parser: IncrementalParser, data: bytes) -> list[sxp.SxpValue]:
    parser.feed(data)
    values = []
    while (value := parser.next()) is not None:
        values.append(value)
    return values


@given(st.lists(VALUES, min_size=1, max_size=6), st.integers(1, 7))
def test_pieces_make_no_difference(values: list[sxp.SxpValue], size: int) -> None:
    data = b"".join(sxp.encode(value) + b"\n" for value in values)
    parser = IncrementalParser()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert [value for piece in pieces for value in read(parser, piece)] == values


def test_no_byte_beyond_a_value_is_taken() -> None:
    parser = IncrementalParser()
    parser.feed(b"receive")
    assert parser.next() is None
    parser.feed(b"\nLinuxGuestRecord\0\0")
    assert parser.next() == "receive"
    assert parser.unread == b"\nLinuxGuestRecord\0\0"


def test_an_atom_goes_on_whatever_the_byte() -> None:
    assert read(IncrementalParser(), b"a\0\x04\xff ") == ["a\0\x04\xff"]


def test_a_comment_before_a_value_and_the_end_of_input() -> None:
    parser = IncrementalParser()
    assert read(parser, b"# help\n(a #)\n) \x04 b\n") == [["a"]]
    assert parser.ended


BAD = [
    (b")\n", "syntax error: )", 1, 1),
    (b"a\n  )", "syntax error: )", 2, 3),
    (b"a b\xff \xff", "invalid character: code 255", 1, 6),
    (b"\x16\x03\x01", "invalid character: code 22", 1, 1),
    (b"a\n b (c '\\400')", "invalid octal escape: out of range 400", 2, 9),
    (b"(\n'\\xg')", "invalid hex escape: expected two hex digits", 2, 3),
]


@pytest.mark.parametrize(("data", "reason", "line", "column"), BAD, ids=[row[1] for row in BAD])
def test_errors_have_their_place_in_the_stream(
    data: bytes, reason: str, line: int, column: int
) -> None:
    parser = IncrementalParser()
    with pytest.raises(SxpError) as caught:
        read(parser, data)
    assert (caught.value.reason, caught.value.line, caught.value.column) == (reason, line, column)
    assert read(parser, b"help\n") == ["help"]


@pytest.mark.parametrize(
    ("data", "reason"), [(b"x" * 101, "longer than 100"), (b"((((((", "deeper than 5")]
)
def test_over_a_limit_is_the_end(data: bytes, reason: str) -> None:
    parser = IncrementalParser(max_depth=5, max_bytes=100)
    with pytest.raises(SxpError, match=reason):
        read(parser, data)
    assert parser.ended
    assert read(parser, b"help\n") == []
