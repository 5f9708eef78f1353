"""How the values of xend-config.sxp are read; a parser raises ValueError with what it expected."""

from __future__ import annotations

import re
from collections.abc import Callable

from xendpy import sxp

_TRUE = frozenset(("yes", "y", "1", "on", "true", "t"))
_FALSE = frozenset(("no", "n", "0", "off", "false", "f"))


def parse_bool(value: sxp.SxpValue) -> bool:
    """Return a boolean in any of xend's spellings."""
    word = value.lower() if isinstance(value, str) else ""
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"expected bool: {_said(value)}")


def parse_int(value: sxp.SxpValue) -> int:
    """Return a decimal number."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value):
        return int(value)
    raise ValueError(f"expected int: {_said(value)}")


def parse_count(value: sxp.SxpValue) -> int:
    """Return a number that is not negative."""
    number = parse_int(value)
    if number < 0:
        raise ValueError(f"expected a number from 0 up: {number}")
    return number


def parse_positive(value: sxp.SxpValue) -> int:
    """Return a number above 0."""
    number = parse_int(value)
    if number < 1:
        raise ValueError(f"expected a number from 1 up: {number}")
    return number


def parse_depth(value: sxp.SxpValue) -> int:
    """Return how deep lists may be nested, which the parser bounds as well."""
    depth = parse_positive(value)
    if depth > sxp.DEEPEST:
        raise ValueError(f"expected a number up to {sxp.DEEPEST}: {depth}")
    return depth


def parse_seconds(value: sxp.SxpValue) -> float:
    """Return a time in seconds, not negative."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}(\.\d{1,6})?", value):
        return float(value)
    raise ValueError(f"expected seconds: {_said(value)}")


def parse_port(value: sxp.SxpValue) -> int:
    """Return a TCP port; 0 lets the system choose one."""
    port = parse_int(value)
    if not 0 <= port <= 65535:
        raise ValueError(f"expected a port from 0 to 65535: {port}")
    return port


def parse_str(value: sxp.SxpValue) -> str:
    """Return a string."""
    if isinstance(value, str):
        return value
    raise ValueError(f"expected a string: {_said(value)}")


def parse_value(value: sxp.SxpValue) -> sxp.SxpValue:
    """Return any s-expression as it is."""
    return value


def parse_patterns(value: sxp.SxpValue) -> str:
    """Return a hosts-allow value all of whose patterns compile and none of which is empty."""
    text = parse_str(value)
    split_patterns(text)
    return text


def parse_directories(value: sxp.SxpValue) -> str:
    """Return absolute directories, separated by spaces, as they are."""
    text = parse_str(value)
    for path in text.split():
        if not path.startswith("/") or path == "/":
            raise ValueError(f"expected directories other than /: {_said(path)}")
    return text


def parse_endpoint(value: sxp.SxpValue) -> str:
    """Return `ADDRESS:PORT` as it is; empty = none."""
    text = parse_str(value)
    address, colon, port = text.rpartition(":")
    if text and not (address and colon and re.fullmatch(r"\d{1,5}", port) and int(port) < 65536):
        raise ValueError(f"expected ADDRESS:PORT: {_said(value)}")
    return text


def parse_choice(*choices: str) -> Callable[[sxp.SxpValue], str]:
    """Return a parser that takes one of `choices`."""

    def parse(value: sxp.SxpValue) -> str:
        if value in choices:
            return str(value)
        raise ValueError(f"expected one of {', '.join(choices)}: {_said(value)}")

    return parse


def _said(value: sxp.SxpValue) -> str:
    return value if isinstance(value, str) and value else sxp.show(value)


def split_patterns(text: str) -> tuple[str, ...]:
    """Return the patterns of a hosts-allow value, which xend splits at single spaces.

    Raises:
        ValueError: one is empty, which would let every host in, or is no regular expression.
    """
    if not text:
        return ()
    patterns = tuple(text.split(" "))
    if "" in patterns:
        raise ValueError(
            "an empty pattern, which would let every host in: "
            "remove the double, leading or trailing space"
        )
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return patterns
