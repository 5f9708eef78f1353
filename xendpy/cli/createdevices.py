"""The devices of a configuration file as elements of xend's s-expression.

Spec: create.py of xm 4.4, configure_disks and its neighbours.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from xendpy.cli.options import CommandFailed

Vals = Mapping[str, Any]
Sxp = list[Any]

_VIF_KEYS: Final = "backend bridge ip mac script type vifname rate model accel policy label"
_VIF2_KEYS: Final = (
    "front_mac back_mac backend trusted back_trusted front_filter_mac filter_mac bridge pdev "
    "max_bypasses"
)
_VFB_KEYS: Final = (
    "vnclisten vncunused vncdisplay display videoram xauthority sdl vnc vncpasswd opengl keymap "
    "serial monitor"
)
_PCI = re.compile(
    r"(?:([0-9a-f]{1,4}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])(?:@([0-9a-f]+))?(?:,(.*))?",
    re.IGNORECASE,
)
_AUTO_SLOT = 0x100  # the daemon chooses where the guest sees the device
_NICS = "The nics option is deprecated.  Please {}."


def pairs(text: str) -> dict[str, str]:
    """Return `a=1,b=2` as a dict, in the order given."""
    found = {}
    for part in filter(None, text.strip().split(",")):
        key, sign, value = part.partition("=")
        if not sign:
            raise CommandFailed(f"{part} should be a pair, separated by an equals sign.")
        found[key.strip()] = value.strip()
    return found


def _known(text: str, keys: str, complaint: str) -> list[Sxp]:
    found = pairs(text)
    for key in found:
        if key not in keys.split():
            raise CommandFailed(complaint.format(key))
    return [[key, value] for key, value in found.items()]


def _disks(vals: Vals) -> list[Sxp]:
    devices = []
    for text in vals["disk"]:
        parts = str(text).split(",")
        if not 3 <= len(parts) <= 5:
            raise CommandFailed(f"Invalid disk specifier: {text}")
        kind = parts[0].partition(":")[0]
        device: Sxp = [kind if kind in ("tap", "tap2") else "vbd"]
        names = ("uname", "dev", "mode", "backend", "protocol")
        device += [
            [name, value]
            for name, value in zip(names, parts, strict=False)
            if value or name in names[:3]
        ]
        devices.append(device)
    return devices


def _pci(vals: Vals) -> list[Sxp]:
    devices: Sxp = []
    for text in vals["pci"]:
        match = _PCI.fullmatch(str(text).strip())
        if match is None:
            raise CommandFailed(f"Invalid pci device: {text}")
        domain, bus, slot, function, vslot, extra = match.groups()
        where = _AUTO_SLOT if vslot is None else int(vslot, 16) << 3 | int(function)
        entry: Sxp = [
            "dev",
            ["domain", f"0x{int(domain or '0', 16):04x}"],
            ["bus", f"0x{int(bus, 16):02x}"],
            ["slot", f"0x{int(slot, 16):02x}"],
            ["func", f"0x{function}"],
            ["vdevfn", f"0x{where:02x}"],
            ["key", str(text).partition(",")[0]],
        ]
        if extra:
            entry.append(["opts", [list(pair) for pair in pairs(extra).items()]])
        devices.append(entry)
    return [["pci", *devices]] if devices else []


def _ioports(vals: Vals) -> list[Sxp]:
    devices: list[Sxp] = []
    for text in vals["ioports"]:
        first, dash, last = str(text).partition("-")
        if "-" in last or not first:
            raise CommandFailed(f"Invalid i/o port range specifier: {text}")
        devices.append(["ioports", ["from", f"0x{first}"], ["to", f"0x{last if dash else first}"]])
    return devices


def _irqs(vals: Vals) -> list[Sxp]:
    return [["irq", ["irq", str(number)]] for number in vals["irq"]]


def _vifs(vals: Vals) -> list[Sxp]:
    entries = list(vals["vif"])
    nics = int(vals["nics"])
    if nics >= 0:
        advice = "use an empty vif entry instead" if nics else "remove it"
        print(f"Warning: {_NICS.format(advice)}", file=sys.stderr)
        entries += [""] * (nics - len(entries))
    return [
        *(["vif", *_known(text, _VIF_KEYS, "Invalid vif option: {}")] for text in entries),
        *(["vif2", *_known(text, _VIF2_KEYS, "Invalid vif2 option: {}")] for text in vals["vif2"]),
    ]


def _vtpm(vals: Vals) -> list[Sxp]:
    if not vals["vtpm"]:
        return []
    given = pairs(vals["vtpm"][0])
    if given.get("instance") == "0" or not given.get("instance", "1").isdecimal():
        raise CommandFailed("VM config error: vTPM instance must be a number above 0.")
    names = {"instance": "pref_instance", "backend": "backend", "type": "type", "uuid": "uuid"}
    return [["vtpm", *([name, given[key]] for key, name in names.items() if given.get(key))]]


def _vfbs(vals: Vals) -> list[Sxp]:
    from xendpy.cli.createsxp import x_authority

    devices: list[Sxp] = []
    for text in vals["vfb"]:
        entries = _known(
            re.sub(r"\btype=(\w+)", r"\1=1", text),
            _VFB_KEYS,
            "configuration option {} unknown to vfbs",
        )
        defaults = {
            "keymap": vals["keymap"],
            "display": os.environ.get("DISPLAY"),
            "xauthority": x_authority(),
        }
        present = {key for key, _ in entries}
        entries += [[k, v] for k, v in defaults.items() if v and k not in present]
        devices += [["vkbd"], ["vfb", *entries]]
    return devices


# In xm's order.
DEVICES: Final[tuple[Callable[[Vals], list[Sxp]], ...]] = (
    _disks,
    _pci,
    _ioports,
    _irqs,
    _vifs,
    _vtpm,
    _vfbs,
)
