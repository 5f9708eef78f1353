"""A guest as libvirt's domain XML.

Source: libvirt's schemas domaincommon.rng and basictypes.rng (facts), against which every document
made here is valid; xend's configuration as in guest.domain. xml_config reads it back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from xendpy import sxp
from xendpy.guest.domain import DomainConfig, DomainSummary, GuestType, kernel_arguments

OFF_ACTIONS = ("destroy", "restart", "preserve", "rename-restart")
ACTIONS: Mapping[str, tuple[str, ...]] = {
    "poweroff": OFF_ACTIONS,
    "reboot": OFF_ACTIONS,
    "crash": (*OFF_ACTIONS, "coredump-destroy", "coredump-restart"),
}
BOOT: Mapping[str, str] = {"c": "hd", "d": "cdrom", "n": "network", "a": "fd"}
# blktap's drivers, as libvirt calls the format of their images
TAP_FORMATS: Mapping[str, str] = {
    "aio": "raw", "sync": "raw", "qcow": "qcow", "qcow2": "qcow2", "vhd": "vpc",
}  # fmt: skip
HVM_SWITCHES = ("acpi", "apic", "pae")
PV_MODEL = "netfront"  # of an interface that an HVM guest drives as a PV guest does
VNC_PORT = 5900
_UNAME = re.compile(r"(?:(phy|file)|tap2?:(?:tapdisk:)?([a-z0-9]+)):(.+)", re.DOTALL)
_NUMBER = re.compile(r"0x[0-9a-f]{1,7}|[0-9]{1,9}")
# Block devices that an old configuration gives by number: major to (name, minors of one disk).
_MAJORS: Mapping[int, tuple[str, int]] = {
    3: ("hd", 64), 22: ("hd", 64), 8: ("sd", 16), 202: ("xvd", 16),
}  # fmt: skip
_SECOND_IDE = 22


def to_xml(guest: DomainSummary) -> str:
    """Return a guest's domain XML."""
    config = guest.config
    root = Element("domain", {"type": "xen"})
    if guest.domid is not None:
        root.set("id", str(guest.domid))
    _text(root, "name", config.name)
    _text(root, "uuid", guest.uuid)
    _text(root, "memory", str(guest.maxmem_mib << 10), unit="KiB")
    _text(root, "currentMemory", str(guest.memory_mib << 10), unit="KiB")
    vcpu = _text(root, "vcpu", str(guest.vcpus), placement="static")
    if guest.online_vcpus not in (0, guest.vcpus):
        vcpu.set("current", str(guest.online_vcpus))
    hvm = config.guest_type is GuestType.HVM
    if not hvm:
        _add_bootloader(root, config)
    _add_os(root, config, hvm=hvm)
    if hvm:
        _add_features(root, config)
    clock = "localtime" if _image(config, "localtime") == "1" else "utc"
    SubElement(root, "clock", {"offset": clock})
    for event, known in ACTIONS.items():
        action = config.text(f"on_{event}", "destroy")
        _text(root, f"on_{event}", action if action in known else "destroy")
    _add_devices(SubElement(root, "devices"), config, hvm=hvm)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _text(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    child = SubElement(parent, tag, attributes)
    child.text = text
    return child


def _image(config: DomainConfig, key: str) -> str:
    return sxp.child_text(config.image(), key)


def _add_bootloader(root: Element, config: DomainConfig) -> None:
    loader = config.text("bootloader")
    if not loader and _image(config, "kernel"):
        return
    # Where neither is known the element stays empty: a PV guest has one or the other.
    _text(root, "bootloader", loader)
    if config.text("bootloader_args"):
        _text(root, "bootloader_args", config.text("bootloader_args"))


def _add_os(root: Element, config: DomainConfig, *, hvm: bool) -> None:
    system = SubElement(root, "os")
    machine, kind = ("xenfv", "hvm") if hvm else ("xenpv", "linux")
    _text(system, "type", kind, arch="x86_64", machine=machine)
    if hvm:
        for letter in _image(config, "boot") or "c":
            if letter in BOOT:
                SubElement(system, "boot", {"dev": BOOT[letter]})
        return
    kernel = _image(config, "kernel")
    if not kernel:
        return
    for key, tag in (("kernel", "kernel"), ("ramdisk", "initrd")):
        if path := _image(config, key):
            # A test guest's kernel is no path, and the schema wants one.
            _text(system, tag, path if path.startswith("/") else f"/{path}")
    if arguments := kernel_arguments(config.image()):
        _text(system, "cmdline", arguments)


def _add_features(root: Element, config: DomainConfig) -> None:
    features = SubElement(root, "features")
    for key in HVM_SWITCHES:
        if _image(config, key) == "1":
            SubElement(features, key)


def _add_devices(devices: Element, config: DomainConfig, *, hvm: bool) -> None:
    drawn = False
    for kind, device in config.devices():
        if kind in ("vbd", "tap", "tap2"):
            _add_disk(devices, device)
        elif kind in ("vif", "vif2"):
            _add_interface(devices, device, hvm=hvm)
        elif kind == "console":
            console = SubElement(devices, "console", {"type": "pty"})
            SubElement(console, "target", {"type": "xen", "port": "0"})
        elif kind == "vfb" and not drawn:
            drawn = _add_graphics(devices, device)
    if hvm and not drawn:
        _add_graphics(devices, config.image())


def _add_disk(devices: Element, device: sxp.SxpList) -> None:
    name, _, role = sxp.child_text(device, "dev").removeprefix("ioemu:").partition(":")
    match = _UNAME.fullmatch(sxp.child_text(device, "uname"))
    block = match is not None and match[1] == "phy"
    disk = SubElement(
        devices,
        "disk",
        {"type": "block" if block else "file", "device": "cdrom" if role == "cdrom" else "disk"},
    )
    if match:
        path = match[3] if match[3].startswith("/") else f"/dev/{match[3]}"
        form = TAP_FORMATS.get(match[2] or "", "raw")
        SubElement(disk, "driver", {"name": "qemu", "type": form})
        SubElement(disk, "source", {"dev" if block else "file": path})
    name = _disk_name(name.removeprefix("/dev/"))
    bus = {"hd": "ide", "sd": "scsi"}.get(name[:2], "xen")
    SubElement(disk, "target", {"dev": name, "bus": bus})
    mode = sxp.child_text(device, "mode")
    if mode == "r" or role == "cdrom":
        SubElement(disk, "readonly")
    elif mode == "w!":
        SubElement(disk, "shareable")


def _disk_name(name: str) -> str:
    """Return the name of a disk that may be given by its device number, as in 3.0."""
    if not _NUMBER.fullmatch(name):
        return name or "xvda"
    major, minor = divmod(int(name, 0), 256)
    prefix, minors = _MAJORS.get(major, ("xvd", 16))
    disk, partition = divmod(minor, minors)
    disk += 2 if major == _SECOND_IDE else 0
    return f"{prefix}{chr(ord('a') + disk)}{partition or ''}"


def _add_interface(devices: Element, device: sxp.SxpList, *, hvm: bool) -> None:
    bridge = sxp.child_text(device, "bridge")
    interface = SubElement(devices, "interface", {"type": "bridge" if bridge else "ethernet"})
    model = sxp.child_text(device, "model")
    if hvm and sxp.child_text(device, "type") != "ioemu":
        model = PV_MODEL
    for tag, attribute, value in (
        ("mac", "address", sxp.child_text(device, "mac")),
        ("source", "bridge", bridge),
        ("script", "path", sxp.child_text(device, "script")),
        ("target", "dev", sxp.child_text(device, "vifname")),
        ("model", "type", model),
    ):
        if value:
            SubElement(interface, tag, {attribute: value})


def _add_graphics(devices: Element, said: sxp.SxpList) -> bool:
    """Add the screen, if there is one; `said`: a vfb device, or the image of an HVM guest."""
    if sxp.child_text(said, "vnc") != "1" and sxp.child_text(said, "type") != "vnc":
        return False
    graphics = SubElement(devices, "graphics", {"type": "vnc"})
    display = sxp.child_text(said, "vncdisplay")
    if sxp.child_text(said, "vncunused") == "0" and display.isdecimal():
        graphics.set("port", str(VNC_PORT + int(display)))
        graphics.set("autoport", "no")
    else:
        graphics.set("autoport", "yes")
    if sxp.child_text(said, "keymap"):
        graphics.set("keymap", sxp.child_text(said, "keymap"))
    graphics.set("listen", sxp.child_text(said, "vnclisten") or "127.0.0.1")
    return True
