"""What xm reads from a domain's s-expression as it comes over XML-RPC: nested lists."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xendpy.cli.options import Invocation

Sxp = list[Any]


def child_value(sxp: Sequence[Any], name: str, default: Any = None) -> Any:
    """Return the first value of the first child called `name`, or `default`."""
    for child in sxp:
        if isinstance(child, list) and child and child[0] == name:
            return child[1] if len(child) > 1 else default
    return default


def children(sxp: Sequence[Any], name: str) -> Iterator[Sxp]:
    """Yield the children called `name`."""
    for child in sxp:
        if isinstance(child, list) and child and child[0] == name:
            yield child


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainRow:
    """One line of `xm list`; memory in MiB, times in seconds, `domid` empty if not running."""

    name: str
    domid: str
    memory: int
    vcpus: int
    state: str
    cpu_time: float
    up_time: float
    label: str


def domain_row(sxp: Sequence[Any], *, now: float | None = None) -> DomainRow:
    """Return what the tables show of a `(domain …)`."""
    domid = child_value(sxp, "domid")
    started = child_value(sxp, "start_time")
    up_time = 0.0 if started is None else max(0.0, (now or time.time()) - float(started))
    return DomainRow(
        name=str(child_value(sxp, "name", "??")),
        domid="" if domid is None else str(domid),
        memory=int(child_value(sxp, "memory", 0)),
        # The number online while it runs, the number configured otherwise.
        vcpus=int(child_value(sxp, "online_vcpus", child_value(sxp, "vcpus", 0))),
        state=str(child_value(sxp, "state", "")),
        cpu_time=float(child_value(sxp, "cpu_time", 0.0)),
        up_time=up_time,
        label=_label(sxp),
    )


def _label(sxp: Sequence[Any]) -> str:
    """Return the security label without its policy type: `ACM:policy:label`."""
    return str(child_value(sxp, "security_label", "")).rpartition(":")[2]


def fetch(
    xm: Invocation, names: Sequence[str], *, state: str = "all", full: bool = False
) -> list[Sxp]:
    """Return the named domains, or all in `state`; `full` adds their devices."""
    if names:
        return [xm.call("xend.domain", name, int(full)) for name in names]
    return list(xm.call("xend.domains_with_state", True, state, int(full)))
