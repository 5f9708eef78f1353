"""What of libvirt's domain XML is understood here; everything else is refused by its name.

What every guest here has anyhow, or what says nothing to xend, is passed over: titles, metadata,
cgroups, the emulator, controllers, a memory balloon, the video card, addresses and aliases.
libvirt's own drivers for Xen wrote such things of every guest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from xml.etree.ElementTree import Element

_ANYHOW = frozenset(("address", "alias"))

# The children that an element may have; a path without a row may have none.
_CHILDREN: Mapping[str, Set[str]] = {
    path: frozenset(children.split())
    for path, children in {
        "domain": "name uuid title description metadata memory currentMemory vcpu resource"
        " bootloader bootloader_args os features clock on_poweroff on_reboot on_crash devices"
        " seclabel",
        "domain/os": "type loader kernel initrd cmdline boot",
        "domain/features": "acpi apic pae hap viridian",
        "domain/clock": "timer",
        "domain/seclabel": "label imagelabel baselabel",
        "domain/devices": "emulator disk interface graphics console serial input controller video"
        " memballoon",
        "domain/devices/disk": "driver source target readonly shareable backingStore",
        "domain/devices/interface": "mac source script target model",
        "domain/devices/graphics": "listen",
        "domain/devices/console": "target source",
        "domain/devices/serial": "target source",
    }.items()
}
# Whatever is in them is passed over.
_OPAQUE = frozenset(
    ("domain/metadata", "domain/resource", "domain/devices/emulator", "domain/devices/controller",
     "domain/devices/video", "domain/devices/memballoon", "domain/devices/console/target",
     "domain/devices/serial/target", "domain/devices/disk/backingStore")
)  # fmt: skip

# (path, attribute): the values that are understood; an attribute that is missing is.
_VALUES: Mapping[tuple[str, str], Set[str]] = {
    # `variable` and an adjustment by nothing are how libvirt said so of Xen's guests.
    ("domain/clock", "offset"): frozenset(("utc", "localtime", "variable")),
    ("domain/clock", "adjustment"): frozenset(("0", "reset")),
    ("domain/clock", "basis"): frozenset(("utc", "localtime")),
    ("domain/clock/timer", "name"): frozenset(("hpet",)),
    ("domain/seclabel", "type"): frozenset(("none", "dynamic")),  # static: a guest's XSM label
    ("domain/devices/disk", "type"): frozenset(("file", "block")),
    ("domain/devices/interface", "type"): frozenset(("bridge", "ethernet")),
    ("domain/devices/graphics", "type"): frozenset(("vnc",)),
    ("domain/devices/graphics/listen", "type"): frozenset(("address",)),
    ("domain/devices/console", "type"): frozenset(("pty",)),
    ("domain/devices/serial", "type"): frozenset(("pty",)),
    ("domain/devices/input", "type"): frozenset(("mouse", "keyboard", "tablet")),
}
_REFUSED_ATTRIBUTES = (("domain/vcpu", "cpuset"),)
_ONCE = ("domain/devices/graphics",)


def unsupported(element: Element, path: str = "domain") -> Iterator[str]:
    """Yield what of a domain's XML would be lost, as it is written there."""
    for (where, attribute), values in _VALUES.items():
        if where == path and element.get(attribute, next(iter(values))) not in values:
            yield f"<{element.tag} {attribute}='{element.get(attribute)}'>"
    for where, attribute in _REFUSED_ATTRIBUTES:
        if where == path and attribute in element.keys():  # noqa: SIM118  (an Element is no dict)
            yield f"<{element.tag} {attribute}=...>"
    known = _CHILDREN.get(path, frozenset())
    seen: set[str] = set()
    for child in element:
        below = f"{path}/{child.tag}"
        if child.tag not in known and child.tag not in _ANYHOW:
            yield f"<{child.tag}> in <{element.tag}>"
        elif below in _ONCE and below in seen:
            yield f"a second <{child.tag}>"
        elif below not in _OPAQUE:
            yield from unsupported(child, below)
        seen.add(below)
