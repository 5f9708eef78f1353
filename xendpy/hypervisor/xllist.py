"""What xl prints, as values: `xl list -l`, `xl list -v`, `xl info`.

Source: the output of xl, Xen 4.17; the columns of `list -v` are those of 4.2 and later. xl takes
any name for a guest, and prints it as it is: blanks may be in it, and even an end of line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xendpy.errors import HypervisorError
from xendpy.guest.domain import UUID_PATTERN, DomainState, GuestType
from xendpy.hypervisor.xltool import Tool

INCOMING = "--incoming"  # what xl puts behind the name of a guest that comes in
AWAY = "--migratedaway"  # ... and of one that goes
SUSPEND_CODE = "2"  # SHUTDOWN_suspend, public/sched.h
# From the right: what stands before three numbers and the flags is the name, digits and all.
LISTED = re.compile(
    r"(?P<name>.*)\s+(?P<domid>\d+)\s+(?P<memory>\d+)\s+(?P<vcpus>\d+)\s+"
    r"(?P<flags>[-rbpscd]{6})\s+(?P<time>[\d.]+)\s+(?P<uuid>[0-9a-f-]{36})\s+(?P<code>\S+)"
    r"(\s.*)?",
    re.DOTALL,
)
GUEST_TYPES = {"xen-3.0-x86_64": GuestType.PV, "hvm-3.0-x86_64": GuestType.HVM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One guest of `xl list`.

    `config` is libxl's, empty where libxl does not know it, or nobody asked for it.
    """

    domid: int
    uuid: str
    name: str
    memory_mib: int
    online_vcpus: int
    cpu_time_s: float
    state: DomainState
    config: Mapping[str, Any]

    @property
    def plain_name(self) -> str:
        """The guest's own name, whatever xl put behind it."""
        return self.name.removesuffix(INCOMING).removesuffix(AWAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class XenInfo:
    """What of `xl info` matters."""

    guest_types: frozenset[GuestType]
    pv32: bool
    shadow: bool
    hap: bool
    nr_cpus: int
    free_bytes: int
    total_bytes: int
    version: str


def list_guests(tool: Tool, *, with_config: bool = False) -> list[Listed]:
    """Return every guest but domain 0, ascending by domid; one that is being built is `(null)`.

    Their configurations cost xl a look at every device of every guest, so that who holds a guest
    still meanwhile does not ask for them.

    Raises:
        HypervisorError: xl failed, or printed something else than it ought to.
    """
    configs = _configs(tool.run(["list", "-l"])) if with_config else {}
    rows = list(_rows(tool.run(["list", "-v"])))
    found = [_listed(row, configs.get(int(row["domid"]), {})) for row in rows if int(row["domid"])]
    return sorted(found, key=lambda guest: guest.domid)


def _rows(text: str) -> Iterator[re.Match[str]]:
    """Yield the row of each guest: a line, or more of them if its name has several."""
    begun = ""
    for line in text.split("\n")[1:]:
        match = LISTED.fullmatch(begun + line)
        if match is not None:
            yield match
            begun = ""
        elif UUID_PATTERN.search(line):  # no name's part but a row, of columns that nobody knows
            raise _not_understood(line)
        else:
            begun += f"{line}\n"
    if begun.strip():
        raise _not_understood(begun)


def _not_understood(text: str) -> HypervisorError:
    return HypervisorError(f"a line of `xl list -v` is not understood: {text!r}")


def _configs(text: str) -> dict[int, Mapping[str, Any]]:
    try:
        return {int(entry["domid"]): entry["config"] for entry in json.loads(text)}
    except (ValueError, KeyError, TypeError) as error:
        raise HypervisorError(f"the output of `xl list -l` is not understood: {error}") from error


def _listed(match: re.Match[str], config: Mapping[str, Any]) -> Listed:
    return Listed(
        domid=int(match["domid"]),
        uuid=match["uuid"],
        name=_printable(match["name"].rstrip()),
        memory_mib=int(match["memory"]),
        online_vcpus=int(match["vcpus"]),
        cpu_time_s=float(match["time"]),
        state=_state(match["flags"], match["code"]),
        config=config,
    )


def _printable(name: str) -> str:
    """Return a name that a table and XML can hold."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _state(flags: str, code: str) -> DomainState:
    if "d" in flags:
        return DomainState.DYING
    if "c" in flags:
        return DomainState.CRASHED
    if "s" in flags:
        return DomainState.SUSPENDED if code == SUSPEND_CODE else DomainState.SHUTDOWN
    if "p" in flags:
        return DomainState.PAUSED
    return DomainState.BLOCKED if "b" in flags else DomainState.RUNNING


def info(tool: Tool) -> XenInfo:
    """Return what the hypervisor is and has; errors as `list_guests`."""
    pairs = (line.partition(":") for line in tool.run(["info"]).splitlines())
    said = {key.strip(): value.strip() for key, _, value in pairs}
    caps, virt = said.get("xen_caps", "").split(), said.get("virt_caps", "").split()
    try:
        return XenInfo(
            guest_types=frozenset(kind for cap, kind in GUEST_TYPES.items() if cap in caps),
            pv32="xen-3.0-x86_32p" in caps,
            shadow="shadow" in virt,
            hap="hap" in virt,
            nr_cpus=int(said["nr_cpus"]),
            free_bytes=int(said["free_memory"]) << 20,
            total_bytes=int(said["total_memory"]) << 20,
            version=said.get("xen_version", ""),
        )
    except (KeyError, ValueError) as error:
        raise HypervisorError(f"the output of `xl info` is not understood: {error!r}") from error
