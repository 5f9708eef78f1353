"""A guest as libvirt's domain XML, and a guest's configuration from such XML.

Source: libvirt's schema domaincommon.rng (facts); xend's configuration as in guest.domain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from uuid import uuid4
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from xendpy import sxp
from xendpy.control.libvirt.wire import Code
from xendpy.errors import RpcError
from xendpy.guest.domain import DomainConfig, DomainSummary, GuestType

MAX_XML = 1 << 20
_UNITS = {"b": 1, "bytes": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 1000, "m": 1 << 20,
          "mib": 1 << 20, "mb": 10**6, "g": 1 << 30, "gib": 1 << 30, "gb": 10**9}  # fmt: skip
_ENDS = (
    "destroy",
    "restart",
    "preserve",
    "rename-restart",
    "coredump-destroy",
    "coredump-restart",
)
_UNAME = re.compile(r"(phy|file|tap2?:[a-z0-9]+|tap):(.+)")
_BOOT = {"c": "hd", "d": "cdrom", "n": "network", "a": "fd"}
_BOOT_LETTER = {word: letter for letter, word in _BOOT.items()}


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
    if config.text("bootloader"):
        _text(root, "bootloader", config.text("bootloader"))
        if config.text("bootloader_args"):
            _text(root, "bootloader_args", config.text("bootloader_args"))
    _add_os(root, config)
    if config.guest_type is GuestType.HVM:
        _add_features(root, config)
    SubElement(
        root, "clock", {"offset": "localtime" if _image(config, "localtime") == "1" else "utc"}
    )
    for event in ("poweroff", "reboot", "crash"):
        action = config.text(f"on_{event}", "destroy")
        _text(root, f"on_{event}", action if action in _ENDS else "destroy")
    devices = SubElement(root, "devices")
    for kind, device in config.devices():
        _add_device(devices, kind, device, config)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _text(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    child = SubElement(parent, tag, attributes)
    child.text = text
    return child


def _image(config: DomainConfig, key: str) -> str:
    value = sxp.child_value(config.image(), key)
    return value if isinstance(value, str) else ""


def _add_os(root: Element, config: DomainConfig) -> None:
    system = SubElement(root, "os")
    hvm = config.guest_type is GuestType.HVM
    machine, kind = ("xenfv", "hvm") if hvm else ("xenpv", "linux")
    _text(system, "type", kind, arch="x86_64", machine=machine)
    for key, tag in (("kernel", "kernel"), ("ramdisk", "initrd"), ("args", "cmdline")):
        if _image(config, key) and not (hvm and key == "kernel"):
            _text(system, tag, _image(config, key))
    if hvm:
        for letter in _image(config, "boot") or "c":
            if letter in _BOOT:
                SubElement(system, "boot", {"dev": _BOOT[letter]})


def _add_features(root: Element, config: DomainConfig) -> None:
    features = SubElement(root, "features")
    for key in ("acpi", "apic", "pae"):
        if _image(config, key) == "1":
            SubElement(features, key)


def _add_device(devices: Element, kind: str, device: sxp.SxpList, config: DomainConfig) -> None:
    if kind in ("vbd", "tap", "tap2"):
        _add_disk(devices, device)
    elif kind in ("vif", "vif2"):
        _add_interface(devices, device)
    elif kind == "console":
        console = SubElement(devices, "console", {"type": "pty"})
        SubElement(console, "target", {"type": "xen", "port": "0"})
    elif kind == "vfb" and _value(device, "sdl") != "1":
        listen = _value(device, "vnclisten") or "127.0.0.1"
        SubElement(
            devices,
            "graphics",
            {"type": "vnc", "port": "-1", "autoport": "yes", "listen": listen},
        )


def _value(device: sxp.SxpList, key: str) -> str:
    value = sxp.child_value(device, key)
    return value if isinstance(value, str) else ""


def _add_disk(devices: Element, device: sxp.SxpList) -> None:
    name, _, role = _value(device, "dev").partition(":")
    match = _UNAME.fullmatch(_value(device, "uname"))
    block = match is not None and match[1] == "phy"
    disk = SubElement(
        devices,
        "disk",
        {"type": "block" if block else "file", "device": "cdrom" if role == "cdrom" else "disk"},
    )
    if match:
        path = match[2] if match[2].startswith("/") else f"/dev/{match[2]}"
        SubElement(disk, "driver", {"name": "qemu", "type": "raw"})
        SubElement(disk, "source", {"dev" if block else "file": path})
    bus = "ide" if name.startswith("hd") else "xen"
    SubElement(disk, "target", {"dev": name or "xvda", "bus": bus})
    mode = _value(device, "mode")
    if mode == "r" or role == "cdrom":
        SubElement(disk, "readonly")
    elif mode == "w!":
        SubElement(disk, "shareable")


def _add_interface(devices: Element, device: sxp.SxpList) -> None:
    bridge = _value(device, "bridge")
    interface = SubElement(devices, "interface", {"type": "bridge" if bridge else "ethernet"})
    if _value(device, "mac"):
        SubElement(interface, "mac", {"address": _value(device, "mac")})
    if bridge:
        SubElement(interface, "source", {"bridge": bridge})
    if _value(device, "script"):
        SubElement(interface, "script", {"path": _value(device, "script")})
    if _value(device, "vifname"):
        SubElement(interface, "target", {"dev": _value(device, "vifname")})
    if _value(device, "model"):
        SubElement(interface, "model", {"type": _value(device, "model")})


def from_xml(text: str) -> sxp.SxpList:
    """Return the `(vm ...)` that domain XML describes, for `new_config`.

    Raises:
        RpcError: no domain XML, or one that xend's configuration cannot express.
    """
    root = parse_xml(text, "domain")
    if root.get("type", "xen") != "xen":
        raise _bad(f"unexpected domain type {root.get('type')}, expecting xen")
    memory = _mib(root, "memory")
    current = _mib(root, "currentMemory", memory)
    vm: sxp.SxpList = ["vm", ["name", _found(root, "name")]]
    vm += [
        ["uuid", _found(root, "uuid", str(uuid4()))],
        ["memory", str(min(current, memory))],
        ["maxmem", str(memory)],
        ["vcpus", _found(root, "vcpu", "1")],
    ]
    for event in ("poweroff", "reboot", "crash"):
        action = _found(root, f"on_{event}", "")
        if action:
            vm.append([f"on_{event}", action])
    for tag in ("bootloader", "bootloader_args"):
        if _found(root, tag, ""):
            vm.append([tag, _found(root, tag)])
    vm.append(["image", _image_of(root)])
    vm += [["device", device] for device in _devices_of(root)]
    return vm


def parse_xml(text: str, tag: str) -> Element:
    """Return the root of a client's XML.

    Raises:
        RpcError: it is none, has a DOCTYPE, is too large, or of another kind.
    """
    if len(text) > MAX_XML or "<!DOCTYPE" in text:
        raise _bad("the XML is too large or has a document type")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise _bad(f"the XML cannot be read: {error}") from None
    if root.tag != tag:
        raise _bad(f"<{tag}> was expected, not <{root.tag}>")
    return root


def _bad(reason: str) -> RpcError:
    return RpcError(Code.INVALID_ARG, reason)


def _found(root: Element, path: str, default: str | None = None) -> str:
    text = (root.findtext(path) or "").strip()
    if not text and default is None:
        raise _bad(f"<{path}> is missing")
    return text or default or ""


def _mib(root: Element, tag: str, default: int | None = None) -> int:
    element = root.find(tag)
    if element is None and default is not None:
        return default
    unit = (element.get("unit") or "KiB").lower() if element is not None else "kib"
    text = _found(root, tag)
    if not text.isdigit() or unit not in _UNITS:
        raise _bad(f"<{tag}> {text} {unit} is no size")
    return int(text) * _UNITS[unit] >> 20


def _image_of(root: Element) -> sxp.SxpList:
    kind = _found(root, "os/type", "linux")
    if kind not in ("hvm", "linux", "xen", "xenpvh"):
        raise _bad(f"os type {kind} is not known")
    hvm = kind == "hvm"
    image: sxp.SxpList = ["hvm" if hvm else "linux"]
    for tag, key in (("kernel", "kernel"), ("initrd", "ramdisk"), ("cmdline", "args")):
        if _found(root, f"os/{tag}", ""):
            image.append([key, _found(root, f"os/{tag}")])
    if hvm:
        boots = [_BOOT_LETTER.get(item.get("dev", ""), "") for item in root.findall("os/boot")]
        image.append(["boot", "".join(boots) or "c"])
        for flag in ("acpi", "apic", "pae"):
            image.append([flag, "1" if root.find(f"features/{flag}") is not None else "0"])
    clock = root.find("clock")
    if clock is not None and clock.get("offset") == "localtime":
        image.append(["localtime", "1"])
    return image


def _devices_of(root: Element) -> Iterator[sxp.SxpList]:
    for disk in root.findall("devices/disk"):
        yield _disk_of(disk)
    for interface in root.findall("devices/interface"):
        yield _interface_of(interface)
    if root.find("devices/graphics[@type='vnc']") is not None:
        yield ["vfb", ["type", "vnc"], ["vncunused", "1"], ["vnclisten", "127.0.0.1"]]
    for refused in ("hostdev", "filesystem", "tpm"):
        if root.find(f"devices/{refused}") is not None:
            raise RpcError(Code.ARGUMENT_UNSUPPORTED, f"<{refused}> devices are not supported")


def _disk_of(disk: Element) -> sxp.SxpList:
    source, target = disk.find("source"), disk.find("target")
    if target is None or not target.get("dev"):
        raise _bad("a <disk> has no <target dev=...>")
    role = "cdrom" if disk.get("device") == "cdrom" else "disk"
    uname = ""
    if source is not None and source.get("file"):
        uname = f"file:{source.get('file')}"
    elif source is not None and source.get("dev"):
        uname = f"phy:{source.get('dev')}"
    elif role == "disk":
        raise _bad(f"disk {target.get('dev')} has no source file or device")
    shared = "w!" if disk.find("shareable") is not None else "w"
    mode = "r" if disk.find("readonly") is not None or role == "cdrom" else shared
    return ["vbd", ["uname", uname], ["dev", f"{target.get('dev')}:{role}"], ["mode", mode]]


def _interface_of(interface: Element) -> sxp.SxpList:
    device: sxp.SxpList = ["vif"]
    for path, attribute, key in (
        ("mac", "address", "mac"),
        ("source", "bridge", "bridge"),
        ("script", "path", "script"),
        ("target", "dev", "vifname"),
        ("model", "type", "model"),
    ):
        element = interface.find(path)
        value = element.get(attribute) if element is not None else None
        if value:
            device.append([key, value])
    return device
