"""A guest as the text of an xl.cfg, for `xl create`.

Source: xl.cfg(5), Xen 4.17. Nothing that a value says may become a setting or an option of its
own: texts are quoted, and what a list of options cannot quote is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from xendpy.errors import DomainError
from xendpy.hypervisor import xlcpuid
from xendpy.hypervisor.xlconfig import boot_values, video_mib
from xendpy.hypervisor.xldisk import XlDisk
from xendpy.hypervisor.xlguest import LOCALHOST, UPSTREAM, XlGraphics, XlGuest, XlType
from xendpy.hypervisor.xlnic import XlNic

ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})  # in a string of an xl.cfg


def to_cfg(guest: XlGuest) -> str:
    """Return the text of an xl.cfg."""
    return "".join(f"{key} = {value}\n" for key, value in _cfg(guest))


def _cfg(guest: XlGuest) -> Iterator[tuple[str, str]]:
    yield "name", _quoted(guest.name)
    yield "uuid", _quoted(guest.uuid)
    yield "type", _quoted(guest.type)
    yield "memory", str(guest.memory_mib)
    yield "maxmem", str(guest.maxmem_mib)
    yield "vcpus", str(guest.online_vcpus)
    yield "maxvcpus", str(guest.vcpus)
    if guest.affinity:
        rows = (_quoted(",".join(map(str, cpus)) or "all") for cpus in guest.affinity)
        yield "cpus", f"[{', '.join(rows)}]"
    for key, number in (("cpu_weight", guest.weight), ("cap", guest.cap)):
        if number:
            yield key, str(number)
    for key, value in boot_values(guest.boot).items():
        yield key, _quoted(value) if isinstance(value, str) else _listed(value)
    if guest.tsc_mode:
        yield "tsc_mode", _quoted(guest.tsc_mode)
    if guest.localtime:
        yield "localtime", "1"
    if guest.cpuid:
        yield "cpuid", _listed(xlcpuid.as_cfg(guest.cpuid))
    for key, action in guest.actions.items():
        yield key, _quoted(_action(action))
    if guest.type is XlType.HVM:
        yield from _cfg_hvm(guest)
    yield from _cfg_devices(guest)


def _action(action: str) -> str:
    return {"restart_rename": "rename-restart"}.get(action, action.replace("_", "-"))


def _cfg_hvm(guest: XlGuest) -> Iterator[tuple[str, str]]:
    # A guest that boots here for the first time has no state that an old device model wrote.
    yield "device_model_version", _quoted(UPSTREAM)
    for key, value in guest.switches.items():
        yield key, str(int(value))
    for key, text in guest.texts.items():
        yield key, _quoted(text)
    yield "stdvga", str(int(guest.stdvga))
    if guest.timer_mode:
        yield "timer_mode", _quoted(guest.timer_mode)
    numbers = {
        "rtc_timeoffset": guest.rtc_timeoffset,
        "videoram": video_mib(guest, UPSTREAM),
        "shadow_memory": guest.shadow_mib,
    }
    yield from ((key, str(value)) for key, value in numbers.items() if value)
    yield from ((key, _quoted_unless_number(value)) for key, value in _cfg_graphics(guest))


def _cfg_graphics(guest: XlGuest) -> Iterator[tuple[str, str]]:
    graphics = guest.graphics or XlGraphics()
    yield "vnc", str(int(graphics.vnc))
    if graphics.vnc:
        yield "vnclisten", LOCALHOST
        yield "vncunused", str(int(graphics.unused))
        if graphics.display is not None:
            yield "vncdisplay", str(graphics.display)
        if graphics.password:
            yield "vncpasswd", graphics.password
    yield "sdl", str(int(graphics.sdl))
    if graphics.keymap:
        yield "keymap", graphics.keymap


def _cfg_devices(guest: XlGuest) -> Iterator[tuple[str, str]]:
    if guest.disks:
        yield "disk", _listed(_cfg_disk(disk) for disk in guest.disks)
    if guest.nics:
        yield "vif", _listed(_cfg_nic(guest.name, nic) for nic in guest.nics)
    if guest.graphics is not None and guest.type is not XlType.HVM:
        yield "vfb", _listed([_spec(guest.name, "vfb", _cfg_graphics(guest))])


def _cfg_disk(disk: XlDisk) -> str:
    access = "rw" if disk.writable else "ro"
    kind = "devtype=cdrom, " if disk.cdrom else ""
    form = "" if disk.format == "empty" else f"format={disk.format}, "
    return f"{form}vdev={disk.vdev}, access={access}, {kind}target={disk.path}"


def _cfg_nic(guest: str, nic: XlNic) -> str:
    named = {
        "type": "ioemu" if nic.emulated else "vif",
        "mac": nic.mac,
        "bridge": nic.bridge,
        "script": nic.script,
        "model": nic.model,
        "ip": nic.ip,
        "vifname": nic.ifname,
        "rate": str(nic.rate or ""),
    }
    return _spec(guest, "vif", ((key, value) for key, value in named.items() if value))


def _spec(guest: str, device: str, options: Iterable[tuple[str, str]]) -> str:
    """Return a device's options as xl splits them again: at commas, which nothing can quote."""
    said = list(options)
    for key, value in said:
        if re.search(r"[\x00-\x1f,'\"\\]", value):  # the value may be a password: not shown
            raise DomainError(
                guest,
                f"{device} {key} cannot be told to xl: it has a comma, a quote, a backslash or a"
                " control character",
            )
    return ", ".join(f"{key}={value}" for key, value in said)


def _listed(items: Any) -> str:
    return f"[{', '.join(_quoted(item) for item in items)}]"


def _quoted_unless_number(text: str) -> str:
    return text if text.isascii() and text.isdecimal() else _quoted(text)


def _quoted(text: str) -> str:
    """Return a string of xl.cfg's grammar: backslash, quote and line break are escaped."""
    return '"' + text.translate(ESCAPED) + '"'
