"""A guest that is defined again: what its XML has no words for stays as it was.

xend's configuration holds more than libvirt's XML says: weight and cap, affinity, what starts with
the daemon, limits of an interface. So the XML is held against the one that the kept configuration
would be shown as, and only what differs between these two is changed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from xendpy import sxp
from xendpy.control.libvirt.domain_xml import to_xml
from xendpy.control.libvirt.xml_config import from_xml
from xendpy.control.managed import inactive
from xendpy.guest.domain import DomainConfig

_KINDS = {"vbd": "disk", "tap": "disk", "tap2": "disk", "vif": "vif", "vif2": "vif", "vfb": "vfb"}
_IMAGE_SCREEN = frozenset(
    ("vnc", "vncdisplay", "vncunused", "vnclisten", "vncpasswd", "keymap", "sdl", "type")
)


def redefined(said: sxp.SxpList, old: DomainConfig) -> sxp.SxpList:
    """Return `old` with what `said`, the list from a client's XML, changes in it."""
    shown = from_xml(to_xml(inactive(old)))
    tree = _changed(_settings(old.tree), _settings(shown), _settings(said))
    if _entries(said)["vcpus"] != _entries(shown)["vcpus"]:
        online = _entries(said).get("vcpu_avail")
        tree = [item for item in tree if _key(item) != "vcpu_avail" or item == online]
    devices: sxp.SxpList = [["device", device] for device in _devices(said, shown, old)]
    return [*tree, ["image", _image(said, shown, old)], *devices]


def _image(said: sxp.SxpList, shown: sxp.SxpList, old: DomainConfig) -> sxp.SxpList:
    now, before, image = _list(said, "image"), _list(shown, "image"), old.image()
    # Of another kind of guest the old kind's settings say nothing. libvirt's kinds count: xl's PVH
    # guests are shown as HVM ones.
    if now[:1] != before[:1]:
        return now
    merged = _changed(image, before, now)
    if sxp.child_value(now, "args") != sxp.child_value(before, "args"):
        # They are part of the command line that was shown, and would come in front of it again.
        merged = [item for item in merged if _key(item) not in ("ip", "root")]
    if _screens(said) == _screens(shown):
        return merged
    # An HVM guest's screen may be its image's; one that is changed is a device.
    return [item for item in merged if _key(item) not in _IMAGE_SCREEN]


def _devices(said: sxp.SxpList, shown: sxp.SxpList, old: DomainConfig) -> list[sxp.SxpList]:
    """Return the devices as they are to be: in the XML's order, then those it cannot show."""
    own: dict[str, list[sxp.SxpList]] = {}
    unseen: list[sxp.SxpList] = []
    for kind, device in old.devices():
        second = kind == "vfb" and ("vfb" in own or not _is_drawn(device))
        seen = kind in _KINDS and not second
        (own.setdefault(_KINDS[kind], []) if seen else unseen).append(device)
    # What each was shown as, with the device itself; a screen may be the image's instead.
    before: dict[Hashable, tuple[sxp.SxpList, sxp.SxpList | None]] = {}
    for device in _device_lists(shown):
        left = own.get(_KINDS[str(device[0])], [])
        before[_identity(device)] = (device, left.pop(0) if left else None)
    merged: list[sxp.SxpList] = []
    for device in _device_lists(said):
        was, kept = before.pop(_identity(device), (None, None))
        if was is not None and kept is not None:
            merged.append(_device(device, was, kept))
        elif was != device:
            merged.append(device)
    return [*merged, *unseen]


def _screens(items: sxp.SxpList) -> list[sxp.SxpList]:
    return [device for device in _device_lists(items) if device[0] == "vfb"]


def _device(now: sxp.SxpList, before: sxp.SxpList, kept: sxp.SxpList) -> sxp.SxpList:
    merged = _changed(kept, before, now)
    if sxp.child_value(now, "uname") != sxp.child_value(before, "uname"):
        merged[0] = now[0]  # tap, tap2 or vbd: what its image needs
    return merged


def _is_drawn(device: sxp.SxpList) -> bool:
    return sxp.child_value(device, "vnc") == "1" or sxp.child_value(device, "type") == "vnc"


def _identity(device: sxp.SxpList) -> Hashable:
    """Return what a device is told by among those of its guest."""
    match device[0]:
        case "vbd":
            return "vbd", str(sxp.child_value(device, "dev")).partition(":")[0]
        case "vif":
            mac = sxp.child_value(device, "mac")
            return ("vif", mac.lower()) if isinstance(mac, str) else ("vif", sxp.show(device))
        case kind:
            return str(kind), ""


def _changed(kept: sxp.SxpList, before: sxp.SxpList, now: sxp.SxpList) -> sxp.SxpList:
    """Return the entries `kept`, with the changes from `before` to `now`; the head stays."""
    was, new = _entries(before), _entries(now)
    changes: dict[str, sxp.SxpValue] = {
        key: new.get(key) for key in {**was, **new} if was.get(key) != new.get(key)
    }
    merged: sxp.SxpList = [kept[0]]
    for item in kept[1:]:
        key = _key(item)
        if key not in changes:
            merged.append(item)
        elif (changed := changes[key]) is not None:
            merged.append(changed)
            changes[key] = None
    return [*merged, *(item for item in changes.values() if item is not None)]


def _entries(items: sxp.SxpList) -> Mapping[str, sxp.SxpValue]:
    return {_key(item): item for item in items[1:] if _key(item)}


def _key(item: sxp.SxpValue) -> str:
    return item[0] if isinstance(item, list) and item and isinstance(item[0], str) else ""


def _settings(items: sxp.SxpList) -> sxp.SxpList:
    """Return a configuration without its image and its devices."""
    return [item for item in items if _key(item) not in ("image", "device")]


def _list(items: sxp.SxpList, key: str) -> sxp.SxpList:
    value = sxp.child_value(items, key)
    return value if isinstance(value, list) else []


def _device_lists(items: sxp.SxpList) -> list[sxp.SxpList]:
    return [entry[1] for entry in sxp.children(items, "device") if isinstance(entry[1], list)]
