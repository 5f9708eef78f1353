"""A guest's configuration as it came, brought up to what xl says of the guest at this moment.

Source: libxl_retrieve_domain_configuration, Xen 4.17, which `xl list -l` prints: the JSON that
libxl keeps of a guest, with xenstore's word for what changes while the guest runs. A device that
was attached meanwhile is in it, one that was detached is not, and name, memory and online vcpus
are those of the moment.

Whatever else xend said of the guest stays as it came, and so does a device that is still there:
what this host's rules made of its names is not what another host calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from xendpy import sxp
from xendpy.guest.domain import NAME_PATTERN, DomainConfig
from xendpy.hypervisor.xldisk import DEVICE, read_disk
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.hypervisor.xlsxp import to_config

Json: TypeAlias = Mapping[str, Any]
Key: TypeAlias = tuple[str, str]  # the kind, and what tells it from others

KINDS = {"vbd": "disk", "tap": "disk", "tap2": "disk", "vif": "nic", "vif2": "nic"}
BUILT = ("target_memkb", "max_memkb", "max_vcpus", "avail_vcpus")
MIB_KB = 1024


def brought_up(
    noted: DomainConfig, now: Json, rules: GuestRules, *, name: str = ""
) -> DomainConfig:
    """Return `noted` with what has changed since; itself, bytes and all, if nothing has.

    `now` is libxl's, `rules` are those by which the guest was built, `name` is what xl calls it.

    Raises:
        DomainError: what xl says of the guest is not understood.
    """
    tree = _with_devices(noted, _there(now, _seen(noted, now)), rules)
    changed = noted if tree == noted.tree else DomainConfig.from_sxp(tree)
    values = {**_memory(noted, now["b_info"]), **_vcpus(noted, now["b_info"])}
    if name not in ("", noted.name) and NAME_PATTERN.fullmatch(name):
        values["name"] = name
    return changed.with_values(**values) if values else changed


def _seen(noted: DomainConfig, now: Json) -> DomainConfig:
    """Return xl's view of what can change, in xend's words; nothing else of it is looked at."""
    built = {"target_memkb": noted.memory_mib * MIB_KB, "max_memkb": noted.maxmem_mib * MIB_KB}
    return to_config(
        {
            "c_info": {"type": "pv", "name": noted.name, "uuid": noted.uuid},
            "b_info": built | {key: now["b_info"][key] for key in BUILT if key in now["b_info"]},
            "disks": now.get("disks", []),
            "nics": now.get("nics", []),
        }
    )


def _memory(noted: DomainConfig, built: Json) -> dict[str, str | int]:
    memory = _mib(built.get("target_memkb"), noted.memory_mib)
    maxmem = max(memory, _mib(built.get("max_memkb"), noted.maxmem_mib))
    if (memory, maxmem) == (noted.memory_mib, noted.maxmem_mib):
        return {}
    return {"memory": memory, "maxmem": maxmem}


def _mib(found_kb: Any, noted_mib: int) -> int:
    """Return what xl has in MiB; less than one of difference is libxl's, for video memory."""
    if found_kb is None or abs(int(found_kb) - noted_mib * MIB_KB) < MIB_KB:
        return noted_mib
    return max(int(found_kb) // MIB_KB, 1)


def _vcpus(noted: DomainConfig, built: Json) -> dict[str, str | int]:
    online = {int(cpu) for cpu in built.get("avail_vcpus") or ()}
    if not online or len(online) == noted.online_vcpus:
        return {}
    return {"vcpu_avail": sum(1 << cpu for cpu in online), "online_vcpus": len(online)}


def _there(now: Json, seen: DomainConfig) -> dict[Key, sxp.SxpList]:
    """Return the devices that xl sees, disks by virtual device and interfaces by devid."""
    devids = [nic.get("devid", index) for index, nic in enumerate(now.get("nics", []))]
    there: dict[Key, sxp.SxpList] = {}
    for kind, device in seen.devices():
        match KINDS.get(kind):
            case "disk":
                there["disk", _vdev(device)] = device
            case "nic":
                there["nic", str(devids.pop(0))] = device
    return there


def _with_devices(
    noted: DomainConfig, there: dict[Key, sxp.SxpList], rules: GuestRules
) -> sxp.SxpList:
    """Return the tree of `noted` with the disks and interfaces that are there, which it takes."""
    tree: sxp.SxpList = []
    nr_nics = 0
    for item in noted.tree:
        device = _device(item)
        kind = KINDS.get(str(device[0])) if device else None
        if device is None or kind is None:
            tree.append(item)
            continue
        if kind == "disk":
            found = there.pop((kind, _vdev(device)), None)
            same = found is not None and _is_same_disk(device, found, rules)
        else:
            found = there.pop(_nic_key(device, nr_nics, there), None)
            same = found is not None and _is_same_nic(device, found, rules)
            nr_nics += 1
        if found is not None:
            tree.append(item if same else ["device", found])
    attached: sxp.SxpList = [["device", device] for device in there.values()]
    return tree + attached


def _device(item: sxp.SxpValue) -> sxp.SxpList | None:
    if isinstance(item, list) and len(item) > 1 and item[0] == "device":
        return item[1] if isinstance(item[1], list) and item[1] else None
    return None


def _vdev(device: sxp.SxpList) -> str:
    said = sxp.child_text(device, "dev")
    found = DEVICE.fullmatch(said)
    return found["vdev"] if found else said


def _nic_key(noted: sxp.SxpList, index: int, there: Mapping[Key, sxp.SxpList]) -> Key:
    """Return the key of an interface: where its mac is, or if it came without one, its devid."""
    mac = sxp.child_text(noted, "mac").lower()
    for key, device in there.items():
        if mac and key[0] == "nic" and sxp.child_text(device, "mac").lower() == mac:
            return key
    return "nic", "" if mac else str(index)


def _is_same_disk(noted: sxp.SxpList, found: sxp.SxpList, rules: GuestRules) -> bool:
    """Say whether a disk has the medium that it came with, by its own name or the mapped one."""
    mapped = replace(rules, confined=False)
    plain = replace(mapped, maps=())
    disk = read_disk("", found, plain)
    came = (read_disk("", noted, plain), read_disk("", noted, mapped))
    return (disk.path, disk.writable) in {(item.path, item.writable) for item in came}


def _is_same_nic(noted: sxp.SxpList, found: sxp.SxpList, rules: GuestRules) -> bool:
    bridge, now = sxp.child_text(noted, "bridge"), sxp.child_text(found, "bridge")
    return not bridge or not now or now in (bridge, rules.bridge(bridge))
