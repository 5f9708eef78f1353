"""What can be known before the first page: will this guest live on that host?

The source describes itself and the guest's surroundings in `Facts`; the target compares them
with its own and answers with `Check`s. A failed check refuses the migration, a warning does not.
"""

from __future__ import annotations

import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from xendpy import sxp
from xendpy.errors import DomainNotFound
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.base import Hypervisor, Placement
from xendpy.hypervisor.hostfile import opened

# Xen's scripts to which a bridge is no device of Linux's, or nothing at all.
BRIDGELESS = ("vif-openvswitch", "vif-route", "vif-nat")
PATHS_OPTION = "xendpy-guest-paths"
CLOCK_WARNING_S = 2.0  # start_time is the source's clock: xm uptime is off by the difference
# A guest whose new host was booted later may see its clock jump and timers hang (xen-devel 2008,
# "time jump on live migrate"); every new host was.
UPTIME_WARNING_S = 3600.0


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `detail` is a sentence for the user."""

    name: str
    status: Status
    detail: str
    side: str = "target"

    @classmethod
    def parse(cls, value: Mapping[str, object]) -> Check:
        """Return a check as a peer said it."""
        said = str(value.get("status"))
        status = Status(said) if said in Status.__members__.values() else Status.WARNING
        return cls(str(value.get("name", "")), status, str(value.get("detail", "")))

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "status": str(self.status), "detail": self.detail}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a source says of itself: times in seconds, `disks` as path -> identity."""

    host: str = ""
    clock_s: float = 0.0
    uptime_s: float = 0.0
    disks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: object) -> Facts:
        """Return the facts in a peer's JSON; what is missing or odd counts as not said."""
        if not isinstance(value, dict):
            return cls()
        disks = value.get("disks")
        return cls(
            host=str(value.get("host", ""))[:255],
            clock_s=finite(value.get("clock_s")),
            uptime_s=finite(value.get("uptime_s")),
            disks=_identities(disks if isinstance(disks, dict) else {}),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _identities(disks: Mapping[str, object]) -> dict[str, dict[str, int]]:
    return {path: identity for path, identity in disks.items() if isinstance(identity, dict)}


def finite(value: object) -> float:
    """Return a number as a peer said it; JSON knows numbers that are none, and endless ones."""
    try:
        number = float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def failures(checks: Sequence[Check]) -> list[Check]:
    """Return the checks that forbid the migration."""
    return [check for check in checks if check.status is Status.FAILED]


def gather_facts(config: DomainConfig, host: str) -> Facts:
    """Return what this host says of itself and of the guest's disks."""
    identities = {path: disk_identity(path) for path in disk_paths(config)}
    return Facts(
        host=host,
        clock_s=time.time(),
        uptime_s=uptime_s(),
        disks={path: identity for path, identity in identities.items() if identity},
    )


def uptime_s() -> float:
    """Return how long this host has been up, in seconds."""
    return float(Path("/proc/uptime").read_text().split()[0])


def disk_paths(config: DomainConfig) -> list[str]:
    """Return the paths of the guest's disks that a host must be able to open."""
    paths = []
    for kind, device in config.devices():
        if kind not in ("vbd", "tap", "tap2"):
            continue
        uname = sxp.child_value(device, "uname")
        match = re.fullmatch(r"(?:phy|file|tap2?:[a-z0-9]+|tap):(.+)", str(uname or ""))
        if match:
            path = match[1]
            paths.append(path if path.startswith("/") else f"/dev/{path}")
    return paths


def disk_identity(path: str) -> dict[str, int]:
    """Return what is the same on every host that sees this disk; empty if it cannot be opened.

    A file on a network file system keeps its inode number and size, a shared LUN its size. The
    path may be a peer's: only files and block devices are opened.
    """
    try:
        with opened(path) as disk:
            size, found = os.lseek(disk, 0, os.SEEK_END), os.fstat(disk)
    except (OSError, ValueError):
        return {}
    is_file = stat.S_ISREG(found.st_mode)
    return {"size": size, "inode": found.st_ino} if is_file else {"size": size}


def bridges(config: DomainConfig) -> list[str]:
    """Return the bridges that the guest's network interfaces name, and a script puts them on."""
    names = []
    for kind, device in config.devices():
        bridge, script = sxp.child_value(device, "bridge"), sxp.child_value(device, "script")
        if os.path.basename(str(script or "")) in BRIDGELESS:
            continue
        if kind in ("vif", "vif2") and isinstance(bridge, str) and bridge and bridge not in names:
            names.append(bridge)
    return names


def check_target(
    config: DomainConfig,
    facts: Facts,
    hypervisor: Hypervisor,
    *,
    local: bool = False,
    devices: bool = True,
    max_memory_mib: int = 0,
) -> list[Check]:
    """Return what this host finds, asked to take `config` from the host that says `facts`.

    `local`: the guest comes from this very host. `devices` false: this driver attaches none, so
    bridges and disks are only warned about.
    """
    bad = Status.FAILED if devices else Status.WARNING
    place = hypervisor.place(config)
    return [
        _name(config, hypervisor, local=local),
        _memory(config, hypervisor, max_memory_mib),
        *(Check("configuration", Status.FAILED, text) for text in place.objections),
        *(Check("configuration", Status.WARNING, text) for text in place.notes),
        *(_bridge(name, place.bridge(name), bad) for name in bridges(config)),
        *(_disk(path, place, facts, bad, local=local) for path in disk_paths(config)),
        *_times(facts),
    ]


def _name(config: DomainConfig, hypervisor: Hypervisor, *, local: bool) -> Check:
    if not local:
        for key in (config.name, config.uuid):
            try:
                found = hypervisor.find(key)
            except DomainNotFound:
                continue
            text = f"VM name '{found.name}' already exists as domain {found.domid}"
            return Check("name and uuid", Status.FAILED, text)
    return Check("name and uuid", Status.OK, f"{config.name} and its uuid are free")


def _memory(config: DomainConfig, hypervisor: Hypervisor, max_memory_mib: int) -> Check:
    if max_memory_mib and config.maxmem_mib > max_memory_mib:
        text = f"{config.maxmem_mib} MiB are more than the {max_memory_mib} MiB allowed here"
        return Check("memory", Status.FAILED, text)
    free_mib = hypervisor.capabilities().free_memory_bytes >> 20
    if config.memory_mib > free_mib:
        text = f"{config.memory_mib} MiB are needed, {free_mib} MiB are free"
        return Check("memory", Status.FAILED, text)
    return Check("memory", Status.OK, f"{config.memory_mib} MiB of {free_mib} MiB free")


def _bridge(
    name: str, mapped: str, bad: Status, exists: Callable[[str], bool] = os.path.isdir
) -> Check:
    if "/" not in mapped and exists(f"/sys/class/net/{mapped}/bridge"):
        return Check("bridge", Status.OK, f"bridge {_mapped(name, mapped)} exists")
    return Check("bridge", bad, f"bridge {_mapped(name, mapped)} does not exist")


def _disk(path: str, place: Placement, facts: Facts, bad: Status, *, local: bool) -> Check:
    mapped = place.disk(path)
    shown = _mapped(path, mapped)
    if not place.allows_disk(mapped):  # a stranger could ask so for any file of this host
        return Check("disk", bad, f"{shown} is none that a guest may have: see {PATHS_OPTION}")
    here = disk_identity(mapped)
    if not here:
        return Check("disk", bad, f"{shown} cannot be opened")
    there = facts.disks.get(path)
    if local or there is None or dict(there) == here:
        return Check("disk", Status.OK, f"{shown} is there")
    return Check("disk", bad, f"{shown} is not the same storage: {dict(there)} there, {here} here")


def _mapped(name: str, mapped: str) -> str:
    return name if name == mapped else f"{mapped} (for {name})"


def _times(facts: Facts) -> Iterator[Check]:
    if facts.clock_s:
        difference_s = time.time() - facts.clock_s
        status = Status.OK if abs(difference_s) < CLOCK_WARNING_S else Status.WARNING
        yield Check("clock", status, f"the clocks differ by {difference_s:.1f} s")
    if facts.uptime_s:
        younger_s = facts.uptime_s - uptime_s()
        if younger_s < UPTIME_WARNING_S:
            yield Check("uptime", Status.OK, "this host has been up as long as the other")
        else:
            days = younger_s / 86400
            yield Check(
                "uptime",
                Status.WARNING,
                f"this host was booted {days:.1f} days later: an old guest's clock may jump; set "
                "xen.independent_wallclock=1 in the guest before",
            )
