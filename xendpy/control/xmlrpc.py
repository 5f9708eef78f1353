"""XML-RPC as xend's legacy server spoke it: calls in, replies and faults out.

Source: XMLRPCServer.py and xmlrpclib2.py, Xen 3.1 - 4.4. A reply that is itself a string travels
as the inside of a Python string literal (the stock client evaluates it); strings within arrays
and structs do not. `<nil/>` both ways. Nothing here touches a socket.
"""

from __future__ import annotations

import inspect
import logging
import re
import xmlrpc.client
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias
from xml.parsers import expat

from xendpy.control.call_log import CallLog
from xendpy.errors import DomainNotFound, RpcError, XendError

ERROR_INTERNAL = 1  # any exception that nobody foresaw, an unknown method
ERROR_GENERIC = 2  # XendError, VmError
ERROR_INVALID_DOMAIN = 3  # the fault string is the name as given

MAX_DEPTH = 512  # elements; a value nests three elements per array
MAX_PARAMS = 64
_INT_MAX = (1 << 31) - 1
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# What Python's unmarshaller trips over when the elements do not fit together.
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError)

log = logging.getLogger(__name__)

# What crosses the wire: str, int, float, bool, None, and lists and dicts of them.
Value: TypeAlias = Any
Method: TypeAlias = Callable[..., Awaitable[Value]]


class Dispatcher:
    """A set of methods by name, with introspection, and the way from a body to a reply."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = dict(methods)
        self._call_log = CallLog(log)
        self._methods["system.listMethods"] = self._list_methods
        self._methods["system.methodHelp"] = self._method_help
        self._methods["system.methodSignature"] = self._method_signature

    async def answer(self, body: bytes) -> bytes:
        """Carry out the call in `body` and return the reply, a fault for whatever goes wrong."""
        name = "?"
        try:
            name, params = decode_call(body)
            self._call_log.note(name)
            return encode_result(await self._call(name, params))
        except XendError as error:
            code, text = fault_of(error)
            log.log(_level(code), "%s failed: %s", name, error)
        except Exception as error:
            log.exception("internal error in %s", name)
            code, text = ERROR_INTERNAL, str(error) or type(error).__name__
        return encode_fault(code, text)

    async def _call(self, name: str, params: tuple[Value, ...]) -> Value:
        method = self._methods.get(name)
        if method is None:
            raise RpcError(ERROR_INTERNAL, f'method "{name}" is not supported')
        try:
            inspect.signature(method).bind(*params)
        except TypeError as error:
            raise RpcError(ERROR_INTERNAL, f"{name}: {error}") from None
        return await method(*params)

    async def _list_methods(self) -> Value:
        """Return the names of all methods."""
        return sorted(self._methods)

    async def _method_help(self, name: str) -> Value:
        """Return what a method does."""
        method = self._methods.get(name)
        return (inspect.getdoc(method) or "") if method else ""

    async def _method_signature(self, name: str) -> Value:
        """Return what Python's server always said: signatures are not supported."""
        return "signatures not supported"


def fault_of(error: XendError) -> tuple[int, str]:
    """Return the fault code and string that stand for an error."""
    match error:
        case RpcError():
            return error.code, error.reason
        case DomainNotFound():
            return ERROR_INVALID_DOMAIN, error.domain
        case _:
            return ERROR_GENERIC, str(error)


def _level(code: int) -> int:
    return logging.DEBUG if code == ERROR_INVALID_DOMAIN else logging.WARNING


def decode_call(body: bytes) -> tuple[str, tuple[Value, ...]]:
    """Return the method name and the parameters of a call.

    Raises:
        RpcError: not a call, or XML that has no place in one (a DOCTYPE, deep nesting).
    """
    unmarshaller = xmlrpc.client.Unmarshaller()
    unmarshaller.xml(None, None)  # type: ignore[arg-type]  # as Python's own parser: text, not bytes
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise RpcError(ERROR_INTERNAL, f"XML nests deeper than {MAX_DEPTH} elements")
        unmarshaller.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        unmarshaller.end(tag)

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = unmarshaller.data
    try:
        parser.Parse(body, True)
        params = tuple(unmarshaller.close())
        name = unmarshaller.getmethodname()
    except (expat.ExpatError, xmlrpc.client.Error, *_MALFORMED) as error:
        raise RpcError(ERROR_INTERNAL, f"not an XML-RPC call: {error}") from error
    if not name:
        raise RpcError(ERROR_INTERNAL, "not an XML-RPC call: no method name")
    if len(params) > MAX_PARAMS:
        raise RpcError(ERROR_INTERNAL, f"{len(params)} parameters, more than {MAX_PARAMS}")
    return name, params


def _refuse_doctype(*_declaration: object) -> None:
    raise RpcError(ERROR_INTERNAL, "a DOCTYPE has no place in an XML-RPC call")


def encode_result(result: Value) -> bytes:
    """Return the reply that carries `result`."""
    value = mangle(result) if isinstance(result, str) else plain(result)
    return _document(xmlrpc.client.dumps((value,), methodresponse=True, allow_none=True))


def encode_fault(code: int, text: str) -> bytes:
    """Return the reply that carries a fault."""
    return _document(xmlrpc.client.dumps(xmlrpc.client.Fault(code, _clean(text))))


def _document(xml: str) -> bytes:
    return xml.encode("utf-8", "xmlcharrefreplace")


def mangle(text: str) -> str:
    """Return `text` as the inside of a Python string literal, in ASCII.

    Single quotes stay: the stock client replaces them by `\\047` before it evaluates.
    """
    escaped = text.replace("\\", "\\\\").encode("utf-8", "replace")
    named = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F else named.get(byte, f"\\x{byte:02x}") for byte in escaped
    )


def plain(value: Value) -> Value:
    """Return a nested result with only what a legacy client can take.

    Integers beyond 31 bits become decimal strings, as xend's sxp printed longs; characters that
    XML cannot carry become question marks.
    """
    match value:
        case bool() | float() | None:
            return value
        case int():
            return value if -_INT_MAX - 1 <= value <= _INT_MAX else str(value)
        case str():
            return _clean(value)
        case list() | tuple():
            return [plain(item) for item in value]
        case Mapping():
            return {_clean(str(key)): plain(item) for key, item in value.items()}
        case _:
            raise TypeError(f"{type(value).__name__} has no XML-RPC form")


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
