"""xend's dialect: the table of what xend 4.4.4 read, with its two bugs read as meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xendpy import sxp
from xendpy.errors import SxpError

TABLE = [
    ("", []),
    ("\n \n", []),
    ("# only a comment", []),
    ("(a b)", [["a", "b"]]),
    ("(a b)\n", [["a", "b"]]),
    ("(a '')", [["a", ""]]),
    ('(a "")', [["a", ""]]),
    ("(a)", [["a"]]),
    ("()", [[]]),
    ("(a 1)(a 2)", [["a", "1"], ["a", "2"]]),
    ("(a yes) # c", [["a", "yes"]]),
    ("(a 'b#c')", [["a", "b#c"]]),
    ("(a b'c'd)", [["a", "b'c'd"]]),
    ("(a 'b'c)", [["a", "b", "c"]]),
    ("(a 'b''c')", [["a", "b", "c"]]),
    (r"(a 'x\\.y')", [["a", r"x\.y"]]),
    (r"(a '\101\60')", [["a", "A0"]]),
    (r"(a '\1018')", [["a", "A8"]]),
    (r"(a '\0')", [["a", "\0"]]),
    (r"(a '\07x')", [["a", "\x07x"]]),
    (r"(a '\x41')", [["a", "A"]]),
    (r"(a '\a\b\t\n\v\f\r\\\'\"')", [["a", "\a\b\t\n\v\f\r\\'\""]]),
    (r"(a x\ny)", [["a", r"x\ny"]]),
    ('(a "it\'s")', [["a", "it's"]]),
    ("(a 'multi\nline')", [["a", "multi\nline"]]),
    ("(a $b %c &d *e)", [["a", "$b", "%c", "&d", "*e"]]),
    ("(a ~/x/y.z)", [["a", "~/x/y.z"]]),
    ("(a b=c)", [["a", "b=c"]]),
    ("(a !b)", [["a", "!b"]]),
    ("(a @x)", [["a", "@x"]]),
    ("(a b;c)", [["a", "b", ";c"]]),
    ("receive\nLinuxGuestRecord\0\0\1\0 ", ["receive", "LinuxGuestRecord\0\0\1\0"]),
    ("(a b\xc3\xa9\x04)", [["a", "b\xc3\xa9\x04"]]),
    ("(a {b})", [["a", "{b", "}"]]),
    ("(a [b])", [["a", "[b", "]"]]),
    ("(a <b>)", [["a", "<b", ">"]]),
    ("(a <<EOF\nfoo\nEOF\n)", [["a", "<", "<EOF", "foo", "EOF"]]),
    ("(a 0x10 010 -5 1.5 none)", [["a", "0x10", "010", "-5", "1.5", "none"]]),
    ("(nan 1e5 t nil 00012)", [["nan", "1e5", "t", "nil", "00012"]]),
    ("(a b)\x04(c d)", [["a", "b"]]),
    ("(a '\xc3\xa9')", [["a", "\xc3\xa9"]]),
    ("(a b)\r\n(c d)\r\n", [["a", "b"], ["c", "d"]]),
    ("(a b) junk (c d)", [["a", "b"], "junk", ["c", "d"]]),
    (
        r"(xen-api-server ((9363 pam '^localhost$ example\\.com$') (unix none)))",
        [["xen-api-server", [["9363", "pam", r"^localhost$ example\.com$"], ["unix", "none"]]]],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "values"), TABLE, ids=[repr(row[0]) for row in TABLE])
def test_parse(text: str, values: sxp.SxpList) -> None:
    forms, oddities = sxp.parse_forms(text)
    assert [form.value for form in forms] == values
    assert not oddities


MEANT = [
    (r"(a 'x\.y')", [["a", r"x\.y"]], 6),
    (r"(a 'x\d+')", [["a", r"x\d+"]], 6),
    (r"(a '\$')", [["a", r"\$"]], 5),
    (r"(a '\q')", [["a", r"\q"]], 5),
    (r"(a '\8')", [["a", r"\8"]], 5),
    (r"(a '\x4a')", [["a", "J"]], 5),
    (r"(a '\xff')", [["a", "\xff"]], 5),
    ("(c d)\n(a b", [["c", "d"]], 1),
]


@pytest.mark.parametrize(("text", "values", "column"), MEANT, ids=[row[0] for row in MEANT])
def test_what_xend_misreads_is_read_as_meant_with_a_warning(
    text: str, values: sxp.SxpList, column: int
) -> None:
    forms, oddities = sxp.parse_forms(text)
    assert [form.value for form in forms] == values
    assert [oddity.column for oddity in oddities] == [column]


BAD = [
    ("(a b#c)\n", "unexpected EOF: the list of line 1, column 1, is not closed", 2, 1),
    ("(a b\n", "unexpected EOF: the list of line 1, column 1, is not closed", 2, 1),
    ("(z)\n(a\n (b\n", "unexpected EOF: the list of line 3, column 2, is not closed", 4, 1),
    ("(a 'b", "unexpected EOF: this string is not closed", 1, 4),
    (")", "syntax error: )", 1, 1),
    ("(a b)\n (a b))", "syntax error: )", 2, 7),
    ("(a \xc3\xa9)", "invalid character: code 195", 1, 4),
    ("\xef\xbb\xbf(a b)", "invalid character: code 239", 1, 1),
    (r"(a '\400')", "invalid octal escape: out of range 400", 1, 6),
    (r"(a '\x4')", "invalid hex escape: expected two hex digits", 1, 6),
    (r"(a '\xg')", "invalid hex escape: expected two hex digits", 1, 6),
    ("(" * 65 + ")" * 65, "lists nested deeper than 64", 1, 66),
]


@pytest.mark.parametrize(("text", "reason", "line", "column"), BAD, ids=[row[1] for row in BAD])
def test_errors_carry_line_and_column(text: str, reason: str, line: int, column: int) -> None:
    with pytest.raises(SxpError) as caught:
        sxp.parse(text)
    assert (caught.value.reason, caught.value.line, caught.value.column) == (reason, line, column)


def test_size_is_limited() -> None:
    with pytest.raises(SxpError, match="11 bytes are more than the 10 allowed"):
        sxp.parse("(a bcdefgh)", max_bytes=10)


SHOWN = [
    ("web1", "web1"),
    ("", "''"),
    ("@", "@"),
    ("a@b", "'a@b'"),
    ("two words", "'two words'"),
    ("it's", '"it\'s"'),
    ('it\'s "so"', "'it\\'s \"so\"'"),
    ("a\\b", r"'a\\b'"),
    ("a\nb\t", r"'a\nb\t'"),
    ("\x7f\xe9\0", r"'\x7f\xe9\x00'"),
    (None, "'None'"),
    (True, "True"),
    (5, "5"),
    (1250000000.12, "1250000000.12"),
    (1795416754.171234, "1795416754.17"),
    (3.0, "3.0"),
    (1e16, "1e+16"),
    (["ok"], "(ok)"),
    ([], "()"),
    (["ready", "receive"], "(ready receive)"),
    (["a", ["b", ""]], "(a (b ''))"),
]


@pytest.mark.parametrize(("value", "text"), SHOWN, ids=[row[1] for row in SHOWN])
def test_show(value: sxp.SxpValue, text: str) -> None:
    assert sxp.show(value) == text


BYTES = st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=20)
VALUES = st.recursive(BYTES, lambda inner: st.lists(inner, max_size=5), max_leaves=20)


@given(st.lists(VALUES, max_size=6))
def test_what_is_printed_reads_back(values: list[sxp.SxpValue]) -> None:
    text = "\n".join(sxp.show(value) for value in values) + "\n"
    assert sxp.parse(text) == values


@given(st.binary(max_size=60) | st.text("()'\"\\#x0 \n\x04", max_size=60).map(str.encode))
def test_any_bytes_are_values_or_a_sxp_error(data: bytes) -> None:
    try:
        values = sxp.parse(data.decode("latin-1"))
    except SxpError as error:
        assert 1 <= error.line <= data.count(b"\n") + 1 and error.column >= 1
    else:
        assert sxp.parse(" ".join(sxp.show(value) for value in values)) == values


def test_no_depth_limit_reaches_the_end_of_the_stack() -> None:
    with pytest.raises(SxpError, match="deeper than 200"):
        sxp.parse("(" * 5000, max_depth=10000)
    assert sxp.show(sxp.parse("(" * 200 + ")" * 200, max_depth=200)[0]) == "(" * 200 + ")" * 200


def test_oddities_are_not_collected_without_end() -> None:
    _, oddities = sxp.parse_forms("'" + r"\q" * 5000 + "'")
    assert len(oddities) == 100


def test_forms_know_their_places() -> None:
    forms, _ = sxp.parse_forms("a (b\n c)\n\n  'd\n' e\n")
    assert [(form.line, form.column) for form in forms] == [(1, 1), (1, 3), (4, 3), (5, 3)]


def test_pretty_breaks_what_does_not_fit() -> None:
    tree = sxp.parse_one("(domain (name web1) (image (linux (kernel " + "/boot/x" * 12 + "))))")
    assert sxp.pretty(tree) == (
        "(domain\n"
        "    (name web1)\n"
        "    (image\n"
        "        (linux\n"
        f"            (kernel\n                {'/boot/x' * 12}\n            )\n"
        "        )\n"
        "    )\n"
        ")\n"
    )


def test_lookup_skips_attributes_and_takes_the_first() -> None:
    tree = sxp.parse_one("(d (a (@ (id 1)) b) (a c) (e))")
    assert sxp.child_value(tree, "a") == "b"
    assert sxp.child_value(tree, "e", "none") == "none"
    assert sxp.child_value(tree, "x", "none") == "none"
    assert [item[-1] for item in sxp.children(tree, "a")] == ["b", "c"]


@pytest.mark.parametrize("data", [b"", b"atom", b"(a b"])
def test_parse_one_wants_a_whole_list(data: bytes) -> None:
    with pytest.raises(SxpError):
        sxp.parse_one(data)
