"""xm's configuration files: assignments in the syntax of Python, read and never executed.

Spec: xen/xm/opts.py of xm 4.4 ran such a file with exec. What such files hold in practice is
understood here: literals, lists, tuples, `+`, `%`, arithmetic of numbers, names assigned further
up, `+=`. Everything else is an error that names file and line.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from xendpy.errors import ConfigError

MAX_BYTES: Final = 1 << 20
MAX_TEXT: Final = 1 << 20  # characters that one expression may produce

_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,  # Python 2's: these files were written for it
    ast.Mod: operator.mod,
}
# A width or precision of five digits, or one taken from the values.
_WIDE: Final = re.compile(r"%[-+ #0]*[\d.]*(\d{5}|\*)")
# PEP 263: `# -*- coding: latin-1 -*-` in the first line, or behind a first one without code.
_COOKIE: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:[ \t\f]*(?:#[^\r\n]*)?\r?\n)?[ \t\f]*#[^\r\n]*?coding[:=][ \t]*[-\w.]"
)


def read_config(
    source: bytes, path: str, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the variables that a file assigns; `given` are known to it from the start.

    Raises:
        ConfigError: a line is not an assignment that is understood.
    """
    if len(source) > MAX_BYTES:
        raise ConfigError(f"longer than {MAX_BYTES} bytes", path=path)
    try:
        tree = ast.parse(_decoded(source), filename=path)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or None  # 0 = the file as a whole
        reason = getattr(error, "msg", None) or str(error)
        raise ConfigError(reason, path=path, line=line) from error
    reader = _Reader(path, dict(given or {}))
    for statement in tree.body:
        reader.run(statement)
    return reader.assigned


def _decoded(source: bytes) -> bytes | str:
    """Return what `ast.parse` reads as it was meant; it knows UTF-8, a BOM and cookies itself."""
    if _COOKIE.match(source):
        return source
    try:
        source.decode("utf-8")
    except UnicodeDecodeError:
        return source.decode("latin-1")  # what Python 2.4 took a file without a cookie for
    return source


class _Reader:
    """The names known so far, and those that the file assigned."""

    def __init__(self, path: str, known: dict[str, Any]) -> None:
        self._path = path
        self._known = known | {"True": True, "False": False, "None": None}
        self.assigned: dict[str, Any] = {}

    def run(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Assign(targets=targets, value=value):
                self._assign(targets, self._guarded(value))
            case ast.AnnAssign(target=ast.Name() as target, value=ast.expr() as value):
                self._assign([target], self._guarded(value))
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                old = ast.copy_location(ast.Name(id=name, ctx=ast.Load()), statement)
                joined = ast.copy_location(ast.BinOp(left=old, op=op, right=value), statement)
                self._assign([statement.target], self._guarded(joined))
            case ast.Expr(value=ast.Constant(value=str())) | ast.Pass():
                return  # a string of its own is a comment
            case _:
                raise self._error(statement, f"{_name(statement)} is not an assignment")

    def _assign(self, targets: list[ast.expr], value: Any) -> None:
        for target in targets:
            if not isinstance(target, ast.Name):
                raise self._error(target, "only plain names can be assigned")
            self._known[target.id] = self.assigned[target.id] = value

    def _guarded(self, node: ast.expr) -> Any:
        try:
            return self._value(node)
        except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
            raise self._error(node, str(error)) from error

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):
                return value
            case ast.Name(id=name):
                if name not in self._known:
                    raise self._error(node, f"'{name}' is not assigned further up")
                return self._known[name]
            case ast.List(elts=items):
                return [self._value(item) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self._value(item) for item in items)
            case ast.Dict(keys=keys, values=values) if None not in keys:
                pairs = zip(keys, values, strict=True)
                return {self._value(k): self._value(v) for k, v in pairs if k is not None}
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._value(operand)
            case ast.BinOp(left=left, op=op, right=right):
                return self._joined(node, op, self._value(left), self._value(right))
        raise self._error(
            node, f"{_name(node)} is not a literal, and nothing in this file is executed"
        )

    def _joined(self, node: ast.expr, op: ast.operator, left: Any, right: Any) -> Any:
        work = _ARITHMETIC.get(type(op))
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        texts = isinstance(op, ast.Add | ast.Mod) and isinstance(left, str | list | tuple)
        if work is None or not (numbers or texts):
            raise self._error(node, f"{_name(op)} of these values is not understood")
        if isinstance(op, ast.Mod) and isinstance(left, str) and _WIDE.search(left):
            raise self._error(node, "a format with such a width")
        result = work(left, right)
        if isinstance(result, str | list | tuple) and len(result) > MAX_TEXT:
            raise self._error(node, "the value grows too long")
        return result

    def _error(self, node: ast.AST, reason: str) -> ConfigError:
        return ConfigError(reason, path=self._path, line=getattr(node, "lineno", None))


def _name(node: ast.AST) -> str:
    """Return what a user would call a piece of Python."""
    names = {
        ast.Import: "an import",
        ast.ImportFrom: "an import",
        ast.If: "an if",
        ast.For: "a loop",
        ast.While: "a loop",
        ast.FunctionDef: "a function",
        ast.Call: "a call",
        ast.Expr: "an expression",
        ast.Attribute: "an attribute",
        ast.Subscript: "a subscript",
        ast.JoinedStr: "an f-string",
        ast.ListComp: "a list comprehension",
    }
    return names.get(type(node), f"'{type(node).__name__}'")
