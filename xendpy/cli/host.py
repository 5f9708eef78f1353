"""`xm info`, `dmesg` and `log`: the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xendpy.cli.options import Invocation, UsageError


def info(xm: Invocation) -> None:
    """Print what the daemon says of the host, or xend's options."""
    if xm.given("config"):
        _print_rows(_config_rows(xm), width=38)
        return
    rows = xm.call("xend.node.info", int(xm.given("numa")))
    _print_rows(rows[1:], width=23)  # the first is `system`, which xm never showed


def _print_rows(rows: Iterable[Any], *, width: int) -> None:
    for row in rows:
        value = row[1] if len(row) > 1 else "(none)"
        print(f"{row[0]:<{width}}: {value}")


def _config_rows(xm: Invocation) -> list[list[Any]]:
    """Return the options of the configuration file of this host, as its lines stand."""
    from xendpy.sxp import parse

    path = xm.paths.config_file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [row for row in parse(text) if isinstance(row, list) and row]


def dmesg(xm: Invocation) -> None:
    """Print the hypervisor's messages; `-c` clears them too."""
    if xm.params:
        raise UsageError("No parameter required")
    what = "clear" if xm.given("clear") else "info"
    text = str(xm.call(f"xend.node.dmesg.{what}") or "")
    print(text, end="" if text.endswith("\n") or not text else "\n")


def log(xm: Invocation) -> None:
    """Print the daemon's log."""
    print(xm.call("xend.node.log"))
