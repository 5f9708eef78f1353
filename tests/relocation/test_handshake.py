"""The control phase, byte for byte what a real xend 4.4.4 answered to the same probes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xendpy.errors import HandshakeError
from xendpy.relocation.handshake import (
    OK,
    Close,
    Err,
    Handshake,
    Ok,
    Ready,
    Receive,
    Reply,
    parse_reply,
    ready,
    refusal,
)

HELP = b"(ok (help quit receive sslreceive))\n"
BOGUS = (
    b"(err (type \"<class 'xen.xend.XendError.XendError'>\") (value 'Invalid operation: bogus'))\n"
)
UNBALANCED = b"(err (type \"<class 'xen.xend.sxp.ParseError'>\") (value 'syntax error: )'))\n"
TLS = b"(err (type \"<class 'xen.xend.sxp.ParseError'>\") (value 'invalid character: code 22'))\n"

PROBES = [
    ("help", b"help\n", HELP),
    ("help, no newline", b"help", b""),
    ("list", b"(help)", HELP),
    ("list and newline", b"(help)\n", HELP),
    ("list with more", b"(help (x 1))\n", HELP),
    ("bogus", b"bogus\n", BOGUS),
    ("bogus list", b"(bogus 1)\n", BOGUS),
    ("two", b"help\nhelp\n", HELP + HELP),
    ("crlf", b"help\r\n", HELP),
    ("unbalanced", b")\n", UNBALANCED),
    ("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00", TLS),
    ("empty line", b"\n", b""),
    ("comment", b"help#x\n", HELP),
    ("quoted", b"'help'\n", HELP),
]


def answers(data: bytes, *pieces: bytes) -> bytes:
    handshake = Handshake(ops=("receive", "sslreceive"))
    said = b""
    for piece in (data, *pieces):
        for action in handshake.feed(piece):
            assert isinstance(action, Reply), action
            said += action.data
    return said


@pytest.mark.parametrize(
    ("data", "reply"), [row[1:] for row in PROBES], ids=[r[0] for r in PROBES]
)
def test_probe(data: bytes, reply: bytes) -> None:
    assert answers(data) == reply


def test_a_request_may_come_in_pieces() -> None:
    assert answers(b"he", b"lp", b"\n") == HELP


def test_the_connection_goes_on_after_an_error() -> None:
    assert answers(b"bogus\n", b"help\n") == BOGUS + HELP


@pytest.mark.parametrize("request_", [b"quit\n", b"(quit)", b"\x04"])
def test_quit_closes_without_a_byte(request_: bytes) -> None:
    assert Handshake().feed(request_) == [Close()]


@pytest.mark.parametrize(
    ("data", "leftover"),
    [
        (b"receive\n", b""),
        (b"receive\r\n", b""),
        (b"'receive'\n", b""),
        (b"(receive)", b""),
        (b"(receive (live 1))\n", b""),
        (b"receive\nLinuxGuestRecord\0\0\1\0", b"LinuxGuestRecord\0\0\1\0"),
        (b"(receive)LinuxGuestRecord", b"LinuxGuestRecord"),
        (b"receive\n\n", b"\n"),
        (b"receive # go\nLinux", b"Linux"),
        (b"(receive) \r\nLinux", b"Linux"),
        (b"receive \0\0", b" \0\0"),
    ],
)
def test_receive_keeps_the_payload_behind_it(data: bytes, leftover: bytes) -> None:
    assert Handshake().feed(data) == [Receive("receive", leftover)]


def test_an_operation_that_is_not_offered_is_unknown() -> None:
    (action,) = Handshake(ops=("receive",)).feed(b"sslreceive\n")
    assert isinstance(action, Reply) and b"Invalid operation: sslreceive" in action.data


def test_a_request_without_end_is_refused() -> None:
    reply, close = Handshake().feed(b"x" * 40000)
    assert isinstance(reply, Reply) and b"longer than" in reply.data
    assert close == Close()


def test_a_request_without_bottom_is_refused() -> None:
    reply, close = Handshake().feed(b"(" * 17)
    assert isinstance(reply, Reply) and b"nested deeper than 16" in reply.data
    assert close == Close()


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"receive\n", b"(", b"'"]), max_size=8))
def test_whatever_a_peer_sends_is_answered_in_whole_lines(pieces: list[bytes]) -> None:
    handshake = Handshake()
    for piece in pieces:
        actions = handshake.feed(piece)
        assert all(a.data.endswith(b")\n") for a in actions if isinstance(a, Reply))
        if actions and not isinstance(actions[-1], Reply):
            return


@given(st.binary(max_size=60))
def test_every_byte_behind_the_line_is_payload(payload: bytes) -> None:
    assert Handshake().feed(b"receive\n" + payload) == [Receive("receive", payload)]


def test_an_endless_control_phase_is_closed() -> None:
    handshake = Handshake()
    for _ in range(66):
        actions = handshake.feed(b"#" + b"x" * 998 + b"\n")
        if actions:
            break
    assert isinstance(actions[0], Reply) and isinstance(actions[1], Close)


def test_requests_without_end_are_closed() -> None:
    *replies, last, close = Handshake().feed(b"help\n" * 1000)
    assert len(replies) == 256
    assert isinstance(last, Reply) and b"no operation within 256 requests" in last.data
    assert close == Close()


def test_a_peer_that_only_talks_nonsense_is_closed() -> None:
    actions = Handshake().feed(b"bogus\n" * 50)
    assert isinstance(actions[-1], Close)
    assert len(actions) == 8 + 1 + 2  # eight, the one too many, why, and the end


def test_wire_texts() -> None:
    assert ready("receive") == b"(ready receive)\n"
    assert OK == b"(ok)\n"


# What a xend 4.0 or later looks for behind a broken connection (XendDomain.py domain_migrate).
XEND_FINDS = re.compile(rb"^\(err\s*\(type\s*(.+)\)\s*\(value\s*'(.+)'\)\)")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bridge xenbr1 does not exist", b"bridge xenbr1 does not exist"),
        ("VM name 'guest1' already exists", b"VM name guest1 already exists"),
        ("oops", b"refused: oops"),
        ("two\nlines \\ here", b"two lines   here"),
        ("", b"no reason given"),
        ("caf\xe9 is full", b"caf? is full"),
    ],
)
def test_a_refusal_is_found_by_an_old_sender(text: str, found: bytes) -> None:
    match = XEND_FINDS.match(refusal(text))
    assert match is not None and match[2] == found


def test_a_refusal_fits_what_an_old_sender_reads() -> None:
    assert len(refusal("word " * 1000)) <= 1024


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"(ready receive)\n", Ready("receive", "(ready receive)")),
        (b"(ok)\n", Ok("(ok)")),
        (b"(ok (help quit))\n", Ok("(ok (help quit))")),
        (refusal("no room left"), Err("no room left")),
        (b"(err)\n", Err("no reason given")),
    ],
)
def test_parse_reply(line: bytes, reply: object) -> None:
    assert parse_reply(line) == reply


@pytest.mark.parametrize("line", [b"", b"hello\n", b"(maybe)\n", b"HTTP/1.0 400\r\n", b"\xff\n"])
def test_anything_else_is_no_reply(line: bytes) -> None:
    with pytest.raises(HandshakeError):
        parse_reply(line)
