"""A guest's configuration from libvirt's domain XML, for define, create and preflight.

Source: as in domain_xml, which is this backwards. What xend's configuration cannot express is
refused where the guest would not be the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from xendpy import sxp
from xendpy.control.libvirt.domain_xml import (
    ACTIONS,
    BOOT,
    HVM_SWITCHES,
    PV_MODEL,
    TAP_FORMATS,
    VNC_PORT,
)
from xendpy.control.libvirt.wire import Code
from xendpy.control.libvirt.xml_known import unsupported
from xendpy.errors import RpcError
from xendpy.guest.domain import MAX_VCPUS
from xendpy.hypervisor.testguest import KERNEL as TEST_KERNEL

MAX_XML = 1 << 20
_UNITS = {"b": 1, "bytes": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 1000, "m": 1 << 20,
          "mib": 1 << 20, "mb": 10**6, "g": 1 << 30, "gib": 1 << 30, "gb": 10**9}  # fmt: skip
_LETTERS = {word: letter for letter, word in BOOT.items()}
_HVM_SAID = ("hap", "viridian")  # xend has defaults of its own for a guest that does not say
_LOADER = "hvmloader"
# An older libvirt calls them what blktap does; a raw image needs no blktap unless it is named so.
_TAPS = {form: tap for tap, form in TAP_FORMATS.items() if form != "raw"} | {
    tap: tap for tap in TAP_FORMATS
}


def from_xml(text: str) -> sxp.SxpList:
    """Return the `(vm ...)` that domain XML describes, for `new_config`.

    Raises:
        RpcError: no domain XML, or one that xend's configuration cannot express.
    """
    root = parse_xml(text, "domain")
    if root.get("type", "xen") != "xen":
        raise _bad(f"unexpected domain type {root.get('type')}, expecting xen")
    if lost := ", ".join(unsupported(root)):
        raise _unsupported(f"not supported: {lost}")
    _check_loader(root)
    memory = _mib(root, "memory")
    current = _mib(root, "currentMemory", memory)
    vm: sxp.SxpList = ["vm", ["name", _found(root, "name")]]
    vm += [
        ["uuid", _found(root, "uuid", str(uuid4()))],
        ["memory", str(min(current, memory))],
        ["maxmem", str(memory)],
        *_vcpus_of(root),
    ]
    for tag in (*(f"on_{event}" for event in ACTIONS), "bootloader", "bootloader_args"):
        if text := _found(root, tag, ""):
            vm.append([tag, text])
    hvm = _is_hvm(root)
    vm.append(["image", _image_of(root, hvm=hvm)])
    vm += [["device", device] for device in _devices_of(root, hvm=hvm)]
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
    except (ElementTree.ParseError, ValueError) as error:
        raise _bad(f"the XML cannot be read: {error}") from None
    if root.tag != tag:
        raise _bad(f"<{tag}> was expected, not <{root.tag}>")
    return root


def _bad(reason: str) -> RpcError:
    return RpcError(Code.INVALID_ARG, reason)


def _unsupported(reason: str) -> RpcError:
    return RpcError(Code.ARGUMENT_UNSUPPORTED, reason)


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
    if not (text.isascii() and text.isdigit() and len(text) < 20) or unit not in _UNITS:
        raise _bad(f"<{tag}> {text} {unit} is no size")
    return int(text) * _UNITS[unit] >> 20


def _vcpus_of(root: Element) -> Iterator[sxp.SxpList]:
    element = root.find("vcpu")
    most = _found(root, "vcpu", "1")
    current = element.get("current") if element is not None else None
    yield ["vcpus", most]
    if current is None:
        return
    if not (
        current.isdecimal() and most.isdecimal() and 0 < int(current) <= int(most) <= MAX_VCPUS
    ):
        raise _bad(f"<vcpu current='{current}'> of {most} cannot be")
    yield ["vcpu_avail", str((1 << int(current)) - 1)]


def _check_loader(root: Element) -> None:
    loader = _found(root, "os/loader", _LOADER)
    if loader.rpartition("/")[2] != _LOADER:
        raise _unsupported(f"not supported: <loader> {loader}, only Xen's own {_LOADER}")


def _is_hvm(root: Element) -> bool:
    kind = _found(root, "os/type", "linux")
    if kind not in ("hvm", "linux", "xen"):
        raise _unsupported(f"os type {kind} is not supported")
    return kind == "hvm"


def _image_of(root: Element, *, hvm: bool) -> sxp.SxpList:
    image: sxp.SxpList = ["hvm" if hvm else "linux"]
    for tag, key in (("kernel", "kernel"), ("initrd", "ramdisk"), ("cmdline", "args")):
        if value := _found(root, f"os/{tag}", ""):
            image.append([key, TEST_KERNEL if value == f"/{TEST_KERNEL}" else value])
    if hvm:
        image += _hvm_image(root)
    if _is_local(root):
        image.append(["localtime", "1"])
    return image


def _is_local(root: Element) -> bool:
    clock = root.find("clock")
    if clock is None:
        return False
    variable = clock.get("offset") == "variable"
    return clock.get("basis" if variable else "offset") == "localtime"


def _hvm_image(root: Element) -> Iterator[sxp.SxpList]:
    boots = [_LETTERS.get(item.get("dev", ""), "") for item in root.findall("os/boot")]
    yield ["boot", "".join(boots) or "c"]
    for flag in HVM_SWITCHES:
        yield [flag, "1" if root.find(f"features/{flag}") is not None else "0"]
    for flag in _HVM_SAID:
        if (feature := root.find(f"features/{flag}")) is not None:
            yield [flag, "0" if feature.get("state") == "off" else "1"]
    if (hpet := root.find("clock/timer[@name='hpet']")) is not None:
        yield ["hpet", "0" if hpet.get("present") == "no" else "1"]
    if root.find("devices/serial[@type='pty']") is not None:
        yield ["serial", "pty"]
    if root.find("devices/input[@type='tablet']") is not None:
        yield ["usb", "1"]
        yield ["usbdevice", "tablet"]


def _devices_of(root: Element, *, hvm: bool) -> Iterator[sxp.SxpList]:
    for disk in root.findall("devices/disk"):
        yield _disk_of(disk)
    for interface in root.findall("devices/interface"):
        yield _interface_of(interface, hvm=hvm)
    graphics = root.find("devices/graphics[@type='vnc']")
    if graphics is not None:
        yield _graphics_of(graphics)


def _disk_of(disk: Element) -> sxp.SxpList:
    source, target = disk.find("source"), disk.find("target")
    if target is None or not target.get("dev"):
        raise _bad("a <disk> has no <target dev=...>")
    kinds = {"cdrom": "cdrom", "disk": "disk", None: "disk"}
    kind = disk.get("device")
    if kind not in kinds:
        raise _unsupported(f"a disk of the kind {kind} is not supported")
    uname = _uname_of(disk, source)
    if not uname and kinds[kind] == "disk":
        raise _bad(f"disk {target.get('dev')} has no source file or device")
    shared = "w!" if disk.find("shareable") is not None else "w"
    mode = "r" if disk.find("readonly") is not None or kinds[kind] == "cdrom" else shared
    return ["vbd", ["uname", uname], ["dev", f"{target.get('dev')}:{kinds[kind]}"], ["mode", mode]]


def _uname_of(disk: Element, source: Element | None) -> str:
    if source is None:
        return ""
    if source.get("dev"):
        return f"phy:{source.get('dev')}"
    if not source.get("file"):
        return ""
    driver = disk.find("driver")
    form = (driver.get("type") if driver is not None else None) or "raw"
    if form != "raw" and form not in _TAPS:
        raise _unsupported(f"disk images of the format {form} are not supported")
    return (
        f"file:{source.get('file')}"
        if form == "raw"
        else f"tap:{_TAPS[form]}:{source.get('file')}"
    )


def _interface_of(interface: Element, *, hvm: bool) -> sxp.SxpList:
    device: sxp.SxpList = ["vif"]
    said: dict[str, str] = {}
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
            said[key] = value
    if said.get("model") == PV_MODEL:
        del said["model"]
    elif hvm:
        said["type"] = "ioemu"
    device += [[key, value] for key, value in said.items()]
    return device


def _graphics_of(graphics: Element) -> sxp.SxpList:
    port = graphics.get("port") or "-1"
    device: sxp.SxpList = ["vfb", ["type", "vnc"], ["vnc", "1"]]
    if port.isdecimal() and int(port) >= VNC_PORT and graphics.get("autoport") != "yes":
        device += [["vncunused", "0"], ["vncdisplay", str(int(port) - VNC_PORT)]]
    else:
        device.append(["vncunused", "1"])
    listen = graphics.find("listen")
    address = graphics.get("listen") or (listen.get("address") if listen is not None else None)
    device.append(["vnclisten", address or "127.0.0.1"])
    for attribute, key in (("passwd", "vncpasswd"), ("keymap", "keymap")):
        if graphics.get(attribute):
            device.append([key, graphics.get(attribute) or ""])
    return device
