"""The variables of a configuration file as xend's s-expression, `(vm (name …) …)`.

Spec: create.py of xm 4.4, make_config and below; the order of the elements is its own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Final

from xendpy.cli.createdevices import DEVICES, pairs
from xendpy.cli.options import CommandFailed

Vals = Mapping[str, Any]
Sxp = list[Any]

# Elements that are there when they say something.
_PLAIN: Final = """
name memory maxmem shadow_memory restart on_poweroff tsc_mode nomigrate on_reboot on_crash
features on_xend_start on_xend_stop target cpuid cpuid_check machine_address_size
suppress_spurious_page_faults description
"""
_HVM: Final = """
acpi apic boot cpuid cpuid_check actmem xenpaging_file xenpaging_extra device_model display
smbios_firmware acpi_firmware fda fdb gfx_passthru guest_os_type hap hpet isa keymap localtime
nestedhvm nographic opengl oos pae pci pci_msitranslate pci_power_mgmt rtc_timeoffset sdl soundhw
stdvga timer_mode usb usbdevice vcpus vnc vncconsole vncdisplay vnclisten vncunused vpt_align
watchdog watchdog_action xauthority xen_platform_pci memory_sharing
"""
# Kernels that are no files of this host: found by the daemon where it runs.
_NAMED_KERNELS: Final = re.compile(r"hvmloader|xendpy:.*")
_XEN_PATH: Final = "/usr/lib/xen/bin:/usr/lib64/xen/bin:/usr/libexec/xen/bin:/usr/bin"


def make_config(vals: Vals, *, console: bool = False) -> Sxp:
    """Return what `xend.domain.create` is sent; `vals` has every variable.

    Raises:
        CommandFailed: a value is impossible, or a file it names is missing.
    """
    vals = _prepared(vals)
    config: Sxp = ["vm"]
    config += [[key, vals[key]] for key in _PLAIN.split() if vals[key]]
    config += _vcpus(vals)
    config += [
        [key, vals[key]]
        for key in ("uuid", "cpu", "cpus", "cpu_cap", "cpu_weight")
        if vals[key] is not None
    ]
    config += [["backend", [key]] for key in ("blkif", "netif", "tpmif") if vals[key]]
    config += [[key, vals[key]] for key in ("localtime", "oos") if vals[key]]
    if vals["pool"]:
        config.append(["pool_name", vals["pool"]])
    config += _bootloader(vals, console=console)
    if vals["builder"]:
        config.append(["image", _image(vals)])
    config.append(["s3_integrity", vals["s3_integrity"]])
    for kind in DEVICES:
        config += [["device", device] for device in kind(vals)]
    return config


def _prepared(vals: Vals) -> dict[str, Any]:
    """Return the variables with those that are made of several."""
    ready = dict(vals)
    for name in ("cpuid", "cpuid_check"):
        ready[name] = _cpuid(vals[name])
    ready["cmdline_ip"] = ""
    if vals["ip"] or vals["dhcp"] != "off":
        parts = (vals["ip"], vals["nfs_server"] or "")
        rest = ("gateway", "netmask", "hostname", "interface", "dhcp")
        ready["cmdline_ip"] = ":".join(map(str, (*parts, *(vals[key] for key in rest))))
    if vals["nfs_root"]:
        if not vals["nfs_server"]:
            raise CommandFailed("Must set nfs root and nfs server")
        ready["extra"] = f"nfsroot={vals['nfs_server']}:{vals['nfs_root']} {vals['extra']}"
    for name in ("vscsi", "vusb", "access_control"):
        if vals[name]:
            raise CommandFailed(f"{name} is not supported")
    return ready


def _vcpus(vals: Vals) -> list[Sxp]:
    vcpus, most = vals["vcpus"], vals["maxvcpus"]
    if not most:
        return [["vcpus", vcpus]] if vcpus else []
    available = [["vcpu_avail", (1 << int(vcpus)) - 1]] if vcpus else []
    return [*available, ["vcpus", most]]


def _bootloader(vals: Vals, *, console: bool) -> list[Sxp]:
    if not vals["bootloader"]:
        return []
    program = vals["bootloader"]
    if program == "pygrub":
        program = shutil.which("pygrub", path=_XEN_PATH) or "/usr/lib/xen/bin/pygrub"
    args = vals["bootargs"] or ("" if console else "-q")
    return [["bootloader", program], ["bootloader_args", args]]


def _image(vals: Vals) -> Sxp:
    image: Sxp = [vals["builder"]]
    checked = not vals["bootloader"]  # it fetches kernel and RAM disk from the guest itself
    for key, check in (("kernel", checked), ("ramdisk", checked), ("loader", True)):
        if vals[key]:
            image.append([key, _found(key, str(vals[key])) if check else vals[key]])
    if vals["cmdline_ip"]:
        image.append(["ip", vals["cmdline_ip"].removeprefix("ip=")])
    if vals["root"]:
        image.append(["root", vals["root"].removeprefix("root=")])
    image += [[key, vals[key]] for key in ("videoram", "parallel", "serial") if vals[key]]
    if vals["monitor_path"]:
        image += [["monitor_path", vals["monitor_path"]], ["monitor", 1]]
    elif vals["monitor"]:
        image.append(["monitor", vals["monitor"]])
    if vals["extra"]:
        image.append(["args", vals["extra"]])
    if vals["superpages"]:
        image.append(["superpages", vals["superpages"]])
    if vals["builder"] == "hvm":
        image += _hvm(vals)
    image += [
        [key, vals[key]]
        for key in ("vhpt", "machine_address_size", "suppress_spurious_page_faults")
        if vals[key]
    ]
    image += [[key, vals[key]] for key in ("tsc_mode", "nomigrate") if vals[key] is not None]
    return image


def _hvm(vals: Vals) -> list[Sxp]:
    shown = dict(vals)
    shown["display"] = vals["display"] or os.environ.get("DISPLAY")
    shown["xauthority"] = vals["xauthority"] or x_authority()
    entries = [[key, _sent(shown[key])] for key in _HVM.split() if shown[key] is not None]
    if vals["vncpasswd"] is not None:
        entries.append(["vncpasswd", vals["vncpasswd"]])
    if vals["extid"] == 1 or vals["viridian"]:
        entries.append(["viridian", vals["viridian"] or 1])
    return entries


def _sent(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def x_authority() -> str:
    """Return the file that a window of the guest needs to be let in."""
    return os.environ.get("XAUTHORITY") or os.path.expanduser("~/.Xauthority")


def _found(kind: str, path: str) -> str:
    """Return the path of a file of this host, absolute unless it was given with a directory."""
    if _NAMED_KERNELS.fullmatch(path) and kind != "ramdisk":
        return path
    if os.path.dirname(path) and os.path.exists(path):
        return path
    if os.path.exists(os.path.abspath(path)):
        return os.path.abspath(path)
    raise CommandFailed(f'Cannot find {kind} "{path}"')


_CPUID = re.compile(r"((?:0x)?[0-9A-Fa-f]+(?:,(?:0x)?[0-9A-Fa-f]+)?):(.*)")


def _cpuid(entries: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return `1:ecx=xxxx…` as {input: {register: bits}}."""
    leaves: dict[str, dict[str, str]] = {}
    for entry in entries:
        match = _CPUID.fullmatch(entry)
        if match is None:
            raise CommandFailed(f"Invalid cpuid specifier: {entry}")
        registers = pairs(match[2])
        for name, bits in registers.items():
            if name not in ("eax", "ebx", "ecx", "edx"):
                raise CommandFailed("cpuid's syntax is (eax|ebx|ecx|edx)=value")
            if not bits.startswith("0x") and len(bits) != 32:
                raise CommandFailed(f"cpuid: {name} of input {match[1]} needs all its bits")
        leaves[match[1]] = registers
    return leaves
