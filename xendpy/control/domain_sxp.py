"""A guest as the nested list that `xend.domain` answers with, and `xm list -l` prints.

Source: XendConfig.to_sxp and XendDomainInfo.sxpr, Xen 4.4: numbers are numbers, devices come only
in detail, `vcpu_avail` never crosses XML-RPC. The order is that of a 4.4 daemon.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from xendpy.guest.domain import DomainState, DomainSummary

# str, int, float, and lists of them; () arrays are empty lists
Tree: TypeAlias = "str | int | float | list[Tree]"

DOMAIN_0 = "Domain-0"
DOMAIN_0_UUID = "00000000-0000-0000-0000-000000000000"

STATUS_NAMES = ("halted", "paused", "running", "suspended", "shutdown", "crashed", "unknown")
_STATUS: Mapping[DomainState, int] = {
    DomainState.RUNNING: 2,
    DomainState.BLOCKED: 2,
    DomainState.PAUSED: 1,
    DomainState.INCOMING: 1,
    DomainState.SUSPENDED: 3,
    DomainState.SHUTDOWN: 4,
    DomainState.CRASHED: 5,
    DomainState.DYING: 6,
}

# Keys in xend 4.4's order; a default of None leaves a key out that nobody set.
_BEFORE_IMAGE: tuple[tuple[str, str | int | None], ...] = (
    ("cpu_weight", 256),
    ("cpu_cap", 0),
    ("pool_name", "Pool-0"),
    ("bootloader", ""),
    ("vcpus", None),
    ("cpus", None),
    ("on_poweroff", "destroy"),
    ("description", ""),
    ("on_crash", "restart"),
    ("uuid", None),
    ("bootloader_args", ""),
    ("name", None),
    ("on_reboot", "restart"),
    ("maxmem", None),
    ("memory", None),
    ("shadow_memory", 0),
    ("features", ""),
    ("localtime", None),
    ("on_xend_start", "ignore"),
    ("on_xend_stop", "ignore"),
    ("security_label", None),
)
_AFTER_DEVICES = ("cpuid", "cpuid_check", "change_home_server")
_LIVE = ("start_time", "cpu_time", "online_vcpus")
# Never shown, or said by the driver instead of the configuration.
_DROPPED = frozenset(
    (
        "domid",
        "vcpu_avail",
        "status",
        "state",
        "store_mfn",
        "console_mfn",
        "node",
        "image",
        "device",
    )
)
_NUMBERS = frozenset(
    ("cpu_weight", "cpu_cap", "shadow_memory", "localtime", "bootable", "backend")
)
_INTEGER = re.compile(r"-?\d{1,9}")


def status_of(summary: DomainSummary) -> int:
    """Return xend's power state number: 0 halted, 1 paused, 2 running, ... 6 unknown."""
    return 0 if summary.domid is None else _STATUS[summary.state]


def domain_sxp(summary: DomainSummary, *, devices: bool) -> list[Tree]:
    """Return `['domain', ...]`, with a list for each device if `devices`."""
    tree: list[Tree] = ["domain"]
    if summary.domid is not None:
        tree.append(["domid", summary.domid])
    tree += _configuration(summary)
    tree += _run_time(summary)
    tree += _other_keys(summary)
    tree.append(["image", _image(summary)])
    tree.append(["status", status_of(summary)])
    if summary.domid is not None:
        tree.append(["state", summary.state.flags])
    if summary.domid:
        tree += [[key, _integer(summary, key)] for key in ("store_mfn", "console_mfn")]
    if devices:
        tree += [["device", device] for device in device_lists(summary)]
    return tree + _given(summary, _AFTER_DEVICES)


def device_lists(summary: DomainSummary) -> list[list[Tree]]:
    """Return `[class, [key, value], ...]` of every device, numbers as numbers."""
    return [
        [name, *(_entry(item, _number_if_named) for item in device[1:] if isinstance(item, list))]
        for name, device in summary.config.devices()
    ]


def _configuration(summary: DomainSummary) -> list[Tree]:
    said: dict[str, Tree] = {
        "vcpus": summary.vcpus,
        "uuid": summary.uuid,
        "name": summary.name,
        "maxmem": summary.maxmem_mib,
        "memory": summary.memory_mib,
    }
    given = _top_level(summary)
    tree: list[Tree] = []
    for key, default in _BEFORE_IMAGE:
        if key == "description" and summary.domid == 0:
            continue
        if key == "cpus":
            tree.append(["cpus", _affinities(given.get("cpus"), summary.vcpus)])
            continue
        value = said.get(key, given.get(key, default))
        if value is not None:
            tree.append([key, value])
    return tree


def _run_time(summary: DomainSummary) -> list[Tree]:
    if summary.domid is None:
        return _given(summary, _LIVE)
    tree: list[Tree] = []
    if summary.domid:
        tree.append(["start_time", summary.start_time_s])
    return [*tree, ["cpu_time", summary.cpu_time_s], ["online_vcpus", summary.online_vcpus]]


def _other_keys(summary: DomainSummary) -> list[Tree]:
    named = {key for key, _default in _BEFORE_IMAGE}.union(_LIVE, _AFTER_DEVICES, _DROPPED)
    return [[key, value] for key, value in _top_level(summary).items() if key not in named]


def _given(summary: DomainSummary, keys: tuple[str, ...]) -> list[Tree]:
    given = _top_level(summary)
    return [[key, _as_number(given[key])] for key in keys if key in given]


def _top_level(summary: DomainSummary) -> dict[str, Tree]:
    found: dict[str, Tree] = {}
    for item in summary.config.tree[1:]:
        if isinstance(item, list) and item and isinstance(item[0], str):
            key, value = _entry(item, _number_if_named)[:2]
            found.setdefault(str(key), value)
    return found


def _image(summary: DomainSummary) -> list[Tree]:
    """Return the image; a configuration that came as text keeps its numbers as strings."""
    image = summary.config.image()
    convert = _keep if summary.config.raw else _number_outside_notes
    kind: Tree = str(image[0]) if image else "linux"
    return [kind, *(_entry(item, convert) for item in image[1:] if isinstance(item, list))]


def _entry(item: object, convert: Callable[[str, Tree], Tree]) -> list[Tree]:
    """Return `[key, value...]`: `(key )` has an empty value, and atoms pass through `convert`."""
    assert isinstance(item, list)
    key = str(item[0]) if item else ""
    if len(item) < 2:
        return [key, ""]
    return [key, *(convert(key, _copy(value)) for value in item[1:])]


def _copy(value: object) -> Tree:
    return [_copy(item) for item in value] if isinstance(value, list) else str(value)


def _keep(_key: str, value: Tree) -> Tree:
    return value


def _number_if_named(key: str, value: Tree) -> Tree:
    return _as_number(value) if key in _NUMBERS else value


def _number_outside_notes(key: str, value: Tree) -> Tree:
    return value if key == "notes" else _as_number(value)


def _as_number(value: Tree) -> Tree:
    if not isinstance(value, str):
        return value
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if re.fullmatch(r"\d{1,12}\.\d{1,12}", value) else value


def _affinities(value: Tree | None, vcpus: int) -> list[Tree]:
    """Return one list of cpus per vcpu; an empty one means any."""
    if not isinstance(value, list):
        return [[] for _ in range(vcpus)]
    return [[_as_number(cpu) for cpu in row] if isinstance(row, list) else [] for row in value]


def _integer(summary: DomainSummary, key: str) -> int:
    text = summary.config.text(key, "0")
    return int(text) if re.fullmatch(r"\d{1,15}", text) else 0
