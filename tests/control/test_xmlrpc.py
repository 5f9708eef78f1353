from __future__ import annotations

import ast
import xmlrpc.client
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pytest

from xendpy.control import xmlrpc as subject
from xendpy.errors import DomainExists, DomainNotFound, RpcError, Unsupported, XendError


@dataclass(frozen=True)
class Case:
    id: str
    value: Any
    arrives: Any


VALUES = [
    Case("nil", None, None),
    Case("int", 7, 7),
    Case("largest-int", (1 << 31) - 1, (1 << 31) - 1),
    Case("too-large-int", 1 << 31, "2147483648"),
    Case("smallest-int", -(1 << 31), -(1 << 31)),
    Case("bool", True, True),
    Case("float", 1.5, 1.5),
    Case("sxp", ["domain", ["name", "a\nb"], ["cpus", [[], [0, 1]]]], None),
    Case("tuple", ("a", 1), ["a", 1]),
    Case("struct", {"weight": 256, "cap": 0}, None),
    Case("control-character", ["a\x00b\x1b"], ["a?b?"]),
    Case("lone-surrogate", ["\ud800"], ["?"]),
    Case("markup", ["<a>&\"'"], None),
]

STRINGS = [
    ("plain", "plain"),
    ("two\nlines\n", r"two\nlines\n"),
    ("back\\slash", r"back\\slash"),
    ("trailing\\", r"trailing\\"),
    ("tab\tcr\r", r"tab\tcr\r"),
    ("umlaut ü", r"umlaut \xc3\xbc"),
    ("nul\x00", r"nul\x00"),
    ("'single' \"double\"", "'single' \"double\""),
]


@pytest.mark.parametrize("case", VALUES, ids=attrgetter("id"))
def test_result_arrives(case: Case) -> None:
    (value,), _ = xmlrpc.client.loads(subject.encode_result(case.value))
    assert value == (case.value if case.arrives is None else case.arrives)


@pytest.mark.parametrize(("text", "wire"), STRINGS)
def test_string_result_is_the_inside_of_a_literal(text: str, wire: str) -> None:
    (value,), _ = xmlrpc.client.loads(subject.encode_result(text))
    assert value == wire
    # What the stock client makes of it: it evaluates the literal.
    literal = "b'" + wire.replace("'", "\\047") + "'"
    assert ast.literal_eval(literal).decode() == text


def test_fault_string_is_not_mangled() -> None:
    with pytest.raises(xmlrpc.client.Fault) as caught:
        xmlrpc.client.loads(subject.encode_fault(2, "two\nlines \x00"))
    assert (caught.value.faultCode, caught.value.faultString) == (2, "two\nlines ?")


def call(name: str, *params: Any) -> bytes:
    return xmlrpc.client.dumps(params, name, allow_none=True).encode()


@pytest.mark.parametrize(
    "params",
    [(), (1, "a", None, True, 1.5), (["vm", ["name", "x"], []],), ({"a": [None]},), ("ü",)],
)
def test_call_is_decoded(params: tuple[Any, ...]) -> None:
    assert subject.decode_call(call("xend.domain", *params)) == ("xend.domain", params)


BAD = [
    ("empty", b"", "no element found"),
    ("not-xml", b"receive", "syntax error"),
    ("cut", call("a", 1)[:-9], "not an XML-RPC call"),
    ("doctype", b"<?xml version='1.0'?><!DOCTYPE x>" + call("a")[22:], "DOCTYPE"),
    (
        "entities",
        b"<!DOCTYPE x [<!ENTITY a 'aa'><!ENTITY b '&a;&a;'>]><methodCall>&b;</methodCall>",
        "DOCTYPE",
    ),
    (
        "doctype-in-utf-16",
        "<?xml version='1.0' encoding='utf-16'?><!DOCTYPE x><methodCall/>".encode("utf-16"),
        "DOCTYPE",
    ),
    ("deep", b"<a>" * 600, "deeper than"),
    ("no-name", b"<methodCall><params/></methodCall>", "no method name"),
    ("reply", subject.encode_result(1), "no method name"),
    ("bad-int", call("a", 1).replace(b">1<", b">one<"), "not an XML-RPC call"),
    ("endless-int", call("a", 1).replace(b">1<", b">" + b"1" * 5000 + b"<"), "not an XML-RPC"),
    ("unbalanced-array", b"<methodCall><data></data></methodCall>", "not an XML-RPC call"),
    ("many-params", call("a", *range(65)), "65 parameters"),
]


@pytest.mark.parametrize(("body", "text"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_bad_call_is_an_internal_fault(body: bytes, text: str) -> None:
    with pytest.raises(RpcError, match=text):
        subject.decode_call(body)
    with pytest.raises(xmlrpc.client.Fault) as caught:
        xmlrpc.client.loads(await subject.Dispatcher({}).answer(body))
    assert caught.value.faultCode == 1


async def failing(kind: str) -> None:
    raise {
        "missing": DomainNotFound("web1"),
        "taken": DomainExists("web1", "VM name 'web1' already exists"),
        "unsupported": Unsupported("this driver cannot"),
        "own": RpcError(7, "seven"),
        "bug": ZeroDivisionError("division by zero"),
        "silent-bug": KeyError(),
    }[kind]


async def add(first: int, second: int = 2) -> int:
    """Return the sum."""
    return first + second


METHODS: dict[str, subject.Method] = {"fail": failing, "add": add}


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (call("fail", "missing"), 3, "web1"),
        (call("fail", "taken"), 2, "VM name 'web1' already exists"),
        (call("fail", "unsupported"), 2, "this driver cannot"),
        (call("fail", "own"), 7, "seven"),
        (call("fail", "bug"), 1, "division by zero"),
        (call("fail", "silent-bug"), 1, "KeyError"),
        (call("subtract", 1), 1, 'method "subtract" is not supported'),
        (call("add"), 1, "add: missing a required argument: 'first'"),
        (call("add", 1, 2, 3), 1, "add: too many positional arguments"),
        (call("add", "a", 2), 1, 'can only concatenate str (not "int") to str'),
    ],
)
async def test_fault_has_xends_code(body: bytes, code: int, text: str) -> None:
    answer = await subject.Dispatcher(METHODS).answer(body)
    with pytest.raises(xmlrpc.client.Fault) as caught:
        xmlrpc.client.loads(answer)
    assert (caught.value.faultCode, caught.value.faultString) == (code, text)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (call("add", 1), 3),
        (call("system.listMethods"), ["add", "fail", "system.listMethods"]),
        (call("system.methodHelp", "add"), "Return the sum."),
        (call("system.methodHelp", "nothing"), ""),
        (call("system.methodSignature", "add"), "signatures not supported"),
    ],
)
async def test_answer(body: bytes, value: Any) -> None:
    (answer,), _ = xmlrpc.client.loads(await subject.Dispatcher(METHODS).answer(body))
    assert (answer[:3] if isinstance(answer, list) else answer) == value


def test_every_error_has_a_fault() -> None:
    assert subject.fault_of(XendError("x")) == (2, "x")
