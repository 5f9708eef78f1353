"""What a host is, and what its guests can have, as libvirt's XML.

Source: libvirt's schemas capability.rng and domaincaps.rng (facts).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from xendpy.guest.domain import GuestType

BUILDER = "/usr/sbin/xl"  # the schema wants a program
MACHINES: Mapping[GuestType, str] = {GuestType.PV: "xenpv", GuestType.HVM: "xenfv"}
_DEVICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "disk": {"diskDevice": ("disk", "cdrom"), "bus": ("ide", "scsi", "xen")},
    "graphics": {"type": ("vnc",)},
}


def host_xml(architecture: str, memory_mib: int, kinds: Iterable[GuestType]) -> str:
    """Return a host's capabilities."""
    root = Element("capabilities")
    host = SubElement(root, "host")
    cpu = SubElement(host, "cpu")
    SubElement(cpu, "arch").text = architecture
    SubElement(host, "power_management")
    features = SubElement(host, "migration_features")
    SubElement(features, "live")
    cells = SubElement(SubElement(host, "topology"), "cells", {"num": "1"})
    cell = SubElement(cells, "cell", {"id": "0"})
    SubElement(cell, "memory", {"unit": "KiB"}).text = str(memory_mib << 10)
    for kind in sorted(kinds):
        guest = SubElement(root, "guest")
        SubElement(guest, "os_type").text = "hvm" if kind is GuestType.HVM else "xen"
        arch = SubElement(guest, "arch", {"name": "x86_64"})
        SubElement(arch, "wordsize").text = "64"
        SubElement(arch, "machine").text = MACHINES[kind]
        SubElement(arch, "domain", {"type": "xen"})
    return _text(root)


def guest_xml(machine: str, max_vcpus: int) -> str:
    """Return what a guest of a machine type can have."""
    root = Element("domainCapabilities")
    SubElement(root, "path").text = BUILDER
    SubElement(root, "domain").text = "xen"
    SubElement(root, "machine").text = machine
    SubElement(root, "arch").text = "x86_64"
    SubElement(root, "vcpu", {"max": str(max_vcpus)})
    devices = SubElement(root, "devices")
    for tag, enums in _DEVICES.items():
        device = SubElement(devices, tag, {"supported": "yes"})
        for name, values in enums.items():
            choice = SubElement(device, "enum", {"name": name})
            for value in values:
                SubElement(choice, "value").text = value
    return _text(root)


def _text(root: Element) -> str:
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")
