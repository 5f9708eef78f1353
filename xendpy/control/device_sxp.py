"""A guest's devices as `xm network-list` and `xm block-list` ask for them.

Source: XendDomainInfo.getDeviceSxprs and the device controllers, Xen 4.4: per device an id and
what xenstore says of its frontend. Where there is no xenstore the devices of the configuration
stand in, not connected: state 1.
"""

from __future__ import annotations

import re

from xendpy.control.domain_sxp import Tree, device_lists
from xendpy.errors import RpcError
from xendpy.guest.domain import DomainSummary

_DISKS = ("vbd", "tap", "tap2")
_ERROR_GENERIC = 2
_INITIALISING = "1"  # xenbus state
# Xen's vbd numbers: major << 8 | minor, partitions in the low bits (xen-vbd-interface(7)).
_XVD_MAJOR, _HD_MAJORS, _SD_MAJOR = 202, (3, 22, 33, 34), 8
_EXTENDED = 1 << 28  # xvd disks from the 16th on, or beyond 15 partitions


def device_entries(guest: DomainSummary, kind: str) -> list[Tree]:
    """Return `[[id, [[key, value], ...]], ...]` of the devices of a class."""
    entries: list[Tree] = []
    for index, device in enumerate(_of_class(guest, kind)):
        values = {str(item[0]): item[1] for item in device[1:] if isinstance(item, list)}
        if kind in _DISKS:
            number = str(disk_number(str(values.get("dev", ""))) or index)
        else:
            number = str(index)
        entries.append([number, _frontend(guest, kind, number, values)])
    return entries


def device_class(guest: DomainSummary, device: str) -> str:
    """Return the class of the disk that a name or a number means.

    Raises:
        RpcError: the guest has no such disk.
    """
    for kind in _DISKS:
        for values in _of_class(guest, kind):
            name = next(
                (str(i[1]) for i in values[1:] if isinstance(i, list) and i[0] == "dev"), ""
            ).partition(":")[0]
            if device in (name, str(disk_number(name))):
                return kind
    raise RpcError(_ERROR_GENERIC, f"failed to find device '{device}'")


def disk_number(name: str) -> int | None:
    """Return Xen's number of a disk by its name, `xvda1`, `hdc:cdrom`; None for other names."""
    found = re.fullmatch(r"(?:/dev/)?(xvd|hd|sd)([a-z]{1,2})(\d{0,3})", name.partition(":")[0])
    if not found:
        return int(name) if name.isdigit() else None
    disk = 0
    for letter in found[2]:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    disk -= 1
    partition = int(found[3] or 0)
    match found[1]:
        case "xvd" if disk < 16 and partition < 16:
            return _XVD_MAJOR << 8 | disk << 4 | partition
        case "xvd":
            return _EXTENDED | disk << 8 | partition
        case "hd" if disk < 2 * len(_HD_MAJORS):
            return _HD_MAJORS[disk // 2] << 8 | (disk % 2) << 6 | partition
        case "sd" if disk < 16:
            return _SD_MAJOR << 8 | disk << 4 | partition
        case _:
            return None


def _of_class(guest: DomainSummary, kind: str) -> list[list[Tree]]:
    return [device for device in device_lists(guest) if device[0] == kind]


def _frontend(guest: DomainSummary, kind: str, number: str, values: dict[str, Tree]) -> list[Tree]:
    backend = str(values.get("backend", 0))
    path = f"/local/domain/{backend}/backend/{kind}/{guest.domid or 0}/{number}"
    protocol: Tree = ["protocol", values.get("protocol", "x86_64-abi")]
    if kind in _DISKS:
        device_type = str(values.get("dev", "")).partition(":")[2] or "disk"
        return [
            ["state", _INITIALISING],
            ["device-type", device_type],
            ["virtual-device", number],
            ["backend", path],
            protocol,
            ["backend-id", backend],
        ]
    address: list[Tree] = [["mac", values["mac"]]] if "mac" in values else []
    return [
        ["backend-id", backend],
        ["handle", number],
        ["state", _INITIALISING],
        ["backend", path],
        *address,
        protocol,
    ]
