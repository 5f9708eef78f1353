"""A guest as libxl's JSON, for the header of a save file.

Source: libxl_types.idl, Xen 4.17. Only what differs from libxl's defaults is
written, as libxl itself does: a JSON of Xen 4.17 is then read by later releases as well.
"""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from xendpy import sxp
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor import xlcpuid
from xendpy.hypervisor.xlboot import XlBoot
from xendpy.hypervisor.xldisk import XlDisk
from xendpy.hypervisor.xlguest import (
    LOCALHOST,
    UPSTREAM,
    XlGraphics,
    XlGuest,
    XlType,
)
from xendpy.hypervisor.xlnic import XlNic

Json: TypeAlias = dict[str, Any]

# HVM switches: xend's key, which is also that of xl.cfg, to libxl's; the first group is common
# to all types since Xen 4.10.
COMMON_SWITCHES = {"acpi": "acpi", "apic": "apic", "nestedhvm": "nested_hvm"}
HVM_SWITCHES = {
    key: key
    for key in ("pae", "viridian", "hpet", "vpt_align", "nographic", "usb", "xen_platform_pci")
}

# What libxl asks for with qemu-xen, by stdvga; xm's own default is 4 MiB.
LEAST_VIDEO_MIB = {False: 8, True: 16}


def to_json(guest: XlGuest) -> bytes:
    """Return libxl's JSON, with the NUL that a save file's header wants behind it."""
    config: Json = {"c_info": _create_info(guest), "b_info": _build_info(guest)}
    if guest.disks:
        config["disks"] = [_disk(disk) for disk in guest.disks]
    if guest.nics:
        config["nics"] = [_nic(index, nic) for index, nic in enumerate(guest.nics)]
    if guest.graphics is not None and guest.type is not XlType.HVM:
        config["vfbs"] = [{"devid": 0, **_graphics(guest.graphics)}]
        config["vkbs"] = [{"devid": 0}]
    config.update(guest.actions)
    return json.dumps(config, indent=4).encode() + b"\0"


def _create_info(guest: XlGuest) -> Json:
    info: Json = {"type": str(guest.type)}
    if "hap" in guest.switches:
        info["hap"] = _flag(guest.switches["hap"])
    return {**info, "name": guest.name, "uuid": guest.uuid, "run_hotplug_scripts": "True"}


def _build_info(guest: XlGuest) -> Json:
    info: Json = {
        "max_vcpus": guest.vcpus,
        "avail_vcpus": list(range(guest.online_vcpus)),
        "max_memkb": guest.maxmem_mib << 10,
        "target_memkb": guest.memory_mib << 10,
    }
    if guest.affinity and all(
        guest.affinity
    ):  # there is no word here for a vcpu that is not bound
        info["vcpu_hard_affinity"] = [list(cpus) for cpus in guest.affinity]
        info["numa_placement"] = "False"
    if guest.cpuid:
        info["cpuid"] = xlcpuid.as_json(guest.cpuid)
    if guest.tsc_mode:
        info["tsc_mode"] = guest.tsc_mode
    if guest.localtime:
        info["localtime"] = "True"
    sched = {"weight": guest.weight, "cap": guest.cap}
    info["sched_params"] = {key: value for key, value in sched.items() if value}
    info.update(boot_values(guest.boot))
    if guest.type is XlType.HVM:
        info.update(_hvm_build_info(guest))
    info[f"type.{guest.type}"] = _hvm(guest) if guest.type is XlType.HVM else {}
    return info


def boot_values(boot: XlBoot) -> Json:
    """Return what boots the guest, by the names that libxl and xl.cfg have in common."""
    named = {
        "kernel": boot.kernel,
        "cmdline": boot.cmdline,
        "ramdisk": boot.ramdisk,
        "bootloader": boot.bootloader,
        "bootloader_args": list(boot.bootloader_args),
    }
    return {key: value for key, value in named.items() if value}


def _hvm_build_info(guest: XlGuest) -> Json:
    info: Json = {"device_model_version": guest.device_model.replace("-", "_")}
    if mib := video_mib(guest, guest.device_model):
        info["video_memkb"] = mib << 10
    if guest.shadow_mib:
        info["shadow_memkb"] = guest.shadow_mib << 10
    if guest.rtc_timeoffset:
        info["rtc_timeoffset"] = guest.rtc_timeoffset
    if guest.timer_mode:
        info["timer_mode"] = guest.timer_mode
    return {**info, **_switches(guest, COMMON_SWITCHES)}


def video_mib(guest: XlGuest, device_model: str) -> int:
    """Return the video memory; 0 = libxl's default, where qemu-xen takes no less than that."""
    least_mib = LEAST_VIDEO_MIB[guest.stdvga] if device_model == UPSTREAM else 0
    return guest.video_mib if guest.video_mib >= least_mib else 0


def _switches(guest: XlGuest, names: dict[str, str]) -> Json:
    return {names[key]: _flag(value) for key, value in guest.switches.items() if key in names}


def _hvm(guest: XlGuest) -> Json:
    graphics = _graphics(guest.graphics or XlGraphics())
    keymap = graphics.pop("keymap", "")
    return {
        **_switches(guest, HVM_SWITCHES),
        "vga": {"kind": "std" if guest.stdvga else "cirrus"},
        **graphics,
        **({"keymap": keymap} if keymap else {}),
        **guest.texts,
    }


def _graphics(graphics: XlGraphics) -> Json:
    vnc: Json = {"enable": _flag(graphics.vnc)}
    if graphics.vnc:
        vnc["listen"] = LOCALHOST
        if graphics.password:
            vnc["passwd"] = graphics.password
        if graphics.display is not None:
            vnc["display"] = graphics.display
        vnc["findunused"] = _flag(graphics.unused)
    found: Json = {"vnc": vnc, "sdl": {"enable": _flag(graphics.sdl)}}
    return {**found, "keymap": graphics.keymap} if graphics.keymap else found


def _disk(disk: XlDisk) -> Json:
    entry: Json = {"pdev_path": disk.path, "vdev": disk.vdev, "format": disk.format}
    if disk.cdrom:
        entry |= {"removable": 1, "is_cdrom": 1}
    if disk.writable:
        entry["readwrite"] = 1
    return entry


def _nic(index: int, nic: XlNic) -> Json:
    named = {
        "model": nic.model,
        "mac": nic.mac,
        "ip": nic.ip,
        "bridge": nic.bridge,
        "ifname": nic.ifname,
        "script": nic.script,
        "nictype": "vif_ioemu" if nic.emulated else "vif",
        "rate_bytes_per_interval": nic.rate.length_bytes if nic.rate else 0,
        "rate_interval_usecs": nic.rate.interval_usecs if nic.rate else 0,
    }
    return {"devid": index, **{key: value for key, value in named.items() if value}}


def _flag(value: bool) -> str:
    return "True" if value else "False"


def as_created(config: DomainConfig) -> DomainConfig:
    """Return the configuration of a guest that `to_cfg` has started, for those it moves to."""
    if config.image()[:1] != ["hvm"]:
        return config
    said = [item for item in config.image() if not _is(item, "device_model_version")]
    image: sxp.SxpValue = ["image", [*said, ["device_model_version", UPSTREAM]]]
    tree = [image if _is(item, "image") else item for item in config.tree]
    return DomainConfig.from_sxp(tree)


def _is(item: sxp.SxpValue, key: str) -> bool:
    return isinstance(item, list) and item[:1] == [key]
