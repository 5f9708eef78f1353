"""libxl's JSON of a guest as xend's configuration: what peers, save files and `xm list -l` show.

Source: libxl_types.idl, Xen 4.17; the keys of the s-expression are XendConfig.py's, Xen 4.4. What
xend never had a word for is written under libxl's (`pvh`, `device_model_version`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from xendpy import sxp
from xendpy.errors import DomainError, StreamError
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor import xlcpuid
from xendpy.hypervisor.xlboot import PYGRUB, XEND_PYGRUB
from xendpy.hypervisor.xlguest import ACTIONS, DEFAULT_ACTIONS, TIMER_MODES, TSC_MODES
from xendpy.hypervisor.xlnic import Rate

Json: TypeAlias = Mapping[str, Any]

HVM_KEYS = (
    "pae", "viridian", "hpet", "vpt_align", "nographic", "usb", "usbdevice", "soundhw", "serial",
    "boot", "xen_platform_pci", "keymap",
)  # fmt: skip
COMMON_KEYS = {"acpi": "acpi", "apic": "apic", "nested_hvm": "nestedhvm"}
TAP_OF_FORMAT = {"qcow": "tap:qcow", "qcow2": "tap:qcow2", "vhd": "tap:vhd"}
# What a xend cannot be told, and the guest would miss.
FOREIGN = ("pcidevs", "usbctrls", "usbdevs", "vtpms", "p9s", "vdispls", "vsnds", "channels")


def parse_json(text: bytes) -> DomainConfig:
    """Return the configuration in a save file's header, NUL behind it or not.

    Raises:
        StreamError: it is no JSON of a guest.
        DomainError: it lacks what a guest cannot do without.
    """
    try:
        value = json.loads(text.rstrip(b"\0"))
    except ValueError as error:
        raise StreamError(f"the configuration is no JSON: {error}", format="xl") from error
    if not isinstance(value, dict) or not isinstance(value.get("c_info"), dict):
        raise StreamError("the configuration is not that of a guest", format="xl")
    return to_config(value)


def foreign_devices(config: Json) -> list[str]:
    """Return the kinds of devices that a configuration of xend cannot carry."""
    return [name for name in FOREIGN if config.get(name)]


def to_config(config: Json) -> DomainConfig:
    """Return libxl's view of a guest as xend's; errors as `parse_json`."""
    try:
        return DomainConfig.from_sxp(["domain", *_entries(config)])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        name = str(config.get("c_info", {}).get("name", ""))
        raise DomainError(name, f"libxl's configuration is not understood: {error!r}") from error


def _entries(config: Json) -> Iterator[sxp.SxpList]:
    created, built = config["c_info"], config["b_info"]
    memory, maxmem = int(built["target_memkb"]) >> 10, int(built["max_memkb"]) >> 10
    vcpus = int(built.get("max_vcpus", 1))
    online = built.get("avail_vcpus", [0])
    yield ["name", created["name"]]
    yield ["uuid", created["uuid"]]
    yield ["memory", str(max(memory, 1))]
    yield ["maxmem", str(max(maxmem, 1))]
    yield ["vcpus", str(vcpus)]
    yield ["vcpu_avail", str(sum(1 << int(cpu) for cpu in online))]
    yield ["online_vcpus", str(len(online))]
    affinity = built.get("vcpu_hard_affinity", [])
    if affinity:
        yield ["cpus", [[str(cpu) for cpu in cpus] for cpus in affinity]]
    sched = built.get("sched_params", {})
    yield ["cpu_weight", str(sched.get("weight", 256))]
    yield ["cpu_cap", str(sched.get("cap", 0))]
    yield from _actions(config)
    yield ["shadow_memory", str(int(built.get("shadow_memkb", 0)) >> 10)]
    if leaves := xlcpuid.as_sxp(built.get("cpuid") or ()):
        yield ["cpuid", leaves]
    yield from _bootloader(built)
    yield ["image", _image(created, built)]
    for device in _devices(config):
        yield ["device", device]


def _actions(config: Json) -> Iterator[sxp.SxpList]:
    names = {libxl: xend for xend, libxl in ACTIONS.items()}
    for key, default in DEFAULT_ACTIONS.items():
        # libxl leaves out what is its own default: destroy.
        yield [key, names.get(config.get(key, "destroy"), default)]


def _bootloader(built: Json) -> Iterator[sxp.SxpList]:
    said = {**built.get("type.pv", {}), **built}  # Xen 4.10 and before had it among PV's own
    loader = said.get("bootloader")
    if loader:
        yield ["bootloader", XEND_PYGRUB if loader == PYGRUB else loader]
        yield ["bootloader_args", shlex.join(said.get("bootloader_args") or ())]


def _image(created: Json, built: Json) -> sxp.SxpList:
    kind = created["type"]
    tsc = {libxl: xend for xend, libxl in TSC_MODES.items()}
    common: sxp.SxpList = [
        ["kernel", built.get("kernel", "")],
        ["ramdisk", built.get("ramdisk", "")],
        ["args", built.get("cmdline", "")],
        ["tsc_mode", tsc.get(built.get("tsc_mode", "default"), "0")],
        ["localtime", _bit(built.get("localtime"))],
        ["nomigrate", _bit(built.get("disable_migrate"))],
    ]
    if kind == "pv":
        return ["linux", *common]
    if kind == "pvh":
        return ["pvh", *common, ["boot", ""]]  # `boot` is what makes it no PV guest for a xend
    return ["hvm", *common, *_hvm(created, built, built.get("type.hvm", {}))]


def _hvm(created: Json, built: Json, hvm: Json) -> Iterator[sxp.SxpList]:
    if "boot" not in hvm:
        yield ["boot", "c"]
    for key in HVM_KEYS:
        if key in hvm:
            yield [key, _atom(hvm[key])]
    for libxl, xend in COMMON_KEYS.items():
        value = built.get(libxl, hvm.get(libxl))
        if value is not None:
            yield [xend, _atom(value)]
    if "hap" in created:
        yield ["hap", _atom(created["hap"])]
    timers = {libxl: xend for xend, libxl in TIMER_MODES.items()}
    timer = built.get("timer_mode", hvm.get("timer_mode"))
    if timer in timers:
        yield ["timer_mode", timers[timer]]
    yield ["rtc_timeoffset", str(built.get("rtc_timeoffset", 0))]
    yield ["videoram", str(int(built.get("video_memkb", 0)) >> 10)]
    yield ["stdvga", str(int(hvm.get("vga", {}).get("kind") == "std"))]
    model = str(built.get("device_model_version", "qemu_xen"))
    yield ["device_model_version", model.replace("_", "-")]
    yield from _graphics(hvm)


def _devices(config: Json) -> Iterator[sxp.SxpList]:
    for nic in config.get("nics", []):
        yield ["vif", *_nic(nic)]
    for disk in config.get("disks", []):
        yield _disk(disk)
    for vfb in config.get("vfbs", []):
        yield ["vfb", *_graphics(vfb), *_named(vfb, {"keymap": "keymap"})]
    if config.get("vkbs"):
        yield ["vkbd", ["backend", "0"]]
    yield ["console", ["protocol", "vt100"], ["location", "2"]]


def _nic(nic: Json) -> Iterator[sxp.SxpList]:
    yield from _named(
        nic,
        {"bridge": "bridge", "mac": "mac", "script": "script", "model": "model", "ip": "ip",
         "ifname": "vifname"},
    )  # fmt: skip
    if nic.get("rate_interval_usecs") and nic.get("rate_bytes_per_interval"):
        rate = Rate(int(nic["rate_bytes_per_interval"]), int(nic["rate_interval_usecs"]))
        yield ["rate", str(rate)]
    yield ["type", "ioemu" if nic.get("nictype") == "vif_ioemu" else "vif"]
    yield ["backend", _backend(nic)]


def _disk(disk: Json) -> sxp.SxpList:
    path, image = disk.get("pdev_path", ""), disk.get("format", "raw")
    driver = TAP_OF_FORMAT.get(image)
    if driver is None:
        driver = "phy" if path.startswith("/dev/") else "file"
    kind = "cdrom" if disk.get("is_cdrom") else "disk"
    return [
        "tap" if driver.startswith("tap") else "vbd",
        ["dev", f"{disk['vdev']}:{kind}"],
        ["uname", f"{driver}:{path}" if path else "None"],
        ["mode", "w" if disk.get("readwrite") else "r"],
        ["backend", _backend(disk)],
    ]


def _graphics(said: Json) -> Iterator[sxp.SxpList]:
    vnc = said.get("vnc", {})
    yield ["vnc", _bit(vnc.get("enable"))]
    if _bit(vnc.get("enable")) == "1":
        yield from _named(vnc, {"listen": "vnclisten", "passwd": "vncpasswd"})
        yield ["vncdisplay", str(vnc.get("display", 0))]
        yield ["vncunused", _bit(vnc.get("findunused", "True"))]
    yield ["sdl", _bit(said.get("sdl", {}).get("enable"))]


def _named(said: Json, names: Mapping[str, str]) -> Iterator[sxp.SxpList]:
    for libxl, xend in names.items():
        if said.get(libxl):
            yield [xend, str(said[libxl])]


def _backend(device: Json) -> str:
    return str(device.get("backend_domname") or device.get("backend_domid") or 0)


def _bit(value: object) -> str:
    return "1" if value in (True, 1, "True") else "0"


def _atom(value: object) -> str:
    return _bit(value) if value in ("True", "False", True, False) else str(value)
