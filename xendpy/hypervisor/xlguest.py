"""A guest as xl is to build it, read from xend's configuration by the rules of this host.

Sources: XendConfig.py and xm's create.py, Xen 3.0.3 - 4.4 (the keys); xl.cfg(5) and
xl-disk-configuration(5) of Xen 4.17 (what they became). Whatever xl has no equivalent for and the
guest could miss is refused by its name; what only xend itself used is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from xendpy import sxp
from xendpy.errors import DomainError
from xendpy.guest.cpuset import affinity
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.hypervisor.xlboot import XlBoot, read_boot
from xendpy.hypervisor.xlcpuid import Leaf, read_cpuid
from xendpy.hypervisor.xldisk import XlDisk, read_disk
from xendpy.hypervisor.xlnic import XlNic, read_nic
from xendpy.hypervisor.xlrules import GuestRules

LOCALHOST = "127.0.0.1"
ACTIONS = {
    "destroy": "destroy",
    "restart": "restart",
    "preserve": "preserve",
    "rename-restart": "restart_rename",
    "coredump-destroy": "coredump_destroy",
    "coredump-restart": "coredump_restart",
}
DEFAULT_ACTIONS = {"on_poweroff": "destroy", "on_reboot": "restart", "on_crash": "restart"}
TSC_MODES = {  # 0, xend's default, is xl's as well
    "1": "always_emulate",
    "2": "native",
    "3": "native_paravirt",
}
TIMER_MODES = {
    "0": "delay_for_missed_ticks",
    "1": "no_delay_for_missed_ticks",
    "2": "no_missed_ticks_pending",
    "3": "one_missed_tick_pending",
}
# HVM switches by xend's key; all are 0 or 1.
HVM_SWITCHES = (
    "acpi", "apic", "pae", "hpet", "viridian", "vpt_align", "nestedhvm", "hap",
    "xen_platform_pci", "usb", "nographic",
)  # fmt: skip
# HVM texts by xend's key, and what a received one may be: qemu would open any other file, device
# or connection that it names.
HVM_TEXTS = {
    "boot": r"[a-dn]{1,8}",
    "usbdevice": "tablet|mouse|keyboard",
    "soundhw": "[a-z0-9,-]{1,64}",
    "serial": "pty|none|null|vc|stdio",
}
TRADITIONAL = "qemu-xen-traditional"
UPSTREAM = "qemu-xen"
REFUSED_CLASSES = ("pci", "vscsi", "vusb", "ioports", "irq", "vtpm")


class XlType(StrEnum):
    """libxl's types of guests; a PVH one travels as HVM."""

    PV = "pv"
    HVM = "hvm"
    PVH = "pvh"


@dataclass(frozen=True, slots=True, kw_only=True)
class XlGraphics:
    """A frame buffer; VNC is for this host alone.

    `display` is the one to be had, or with `unused` the first to be tried; None is any.
    """

    vnc: bool = False
    sdl: bool = False
    display: int | None = None
    unused: bool = True
    password: str = field(default="", repr=False)
    keymap: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class XlGuest:
    """Everything that xl is told; `switches` and `texts` are HVM's, by xend's keys."""

    type: XlType
    name: str
    uuid: str
    memory_mib: int
    maxmem_mib: int
    vcpus: int
    online_vcpus: int
    affinity: tuple[tuple[int, ...], ...] = ()
    weight: int = 0
    cap: int = 0
    boot: XlBoot = field(default_factory=XlBoot)
    actions: Mapping[str, str] = field(default_factory=dict)
    cpuid: tuple[Leaf, ...] = ()
    tsc_mode: str = ""
    localtime: bool = False
    rtc_timeoffset: int = 0
    shadow_mib: int = 0
    video_mib: int = 0
    stdvga: bool = False
    timer_mode: str = ""
    device_model: str = ""
    switches: Mapping[str, bool] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    disks: tuple[XlDisk, ...] = ()
    nics: tuple[XlNic, ...] = ()
    graphics: XlGraphics | None = None


def read_guest(config: DomainConfig, rules: GuestRules) -> XlGuest:
    """Return the guest that `config` describes, as it is to be built on this host.

    Raises:
        DomainError: it names something that is not allowed, not there or not supported; the text
            says what.
    """
    _refuse_devices(config)
    reader = _Reader(config, rules)
    kind = _type(config)
    return XlGuest(
        type=kind,
        name=config.name,
        uuid=config.uuid,
        memory_mib=config.memory_mib,
        maxmem_mib=config.maxmem_mib,
        vcpus=config.vcpus,
        online_vcpus=config.online_vcpus,
        affinity=reader.affinity(),
        weight=_weight(config.text("cpu_weight")),
        cap=_number(config.text("cpu_cap")),
        boot=XlBoot() if kind is XlType.HVM else read_boot(config, rules),
        actions={key: reader.action(key) for key in DEFAULT_ACTIONS},
        cpuid=read_cpuid(config.name, sxp.child_value(config.tree, "cpuid")),
        tsc_mode=TSC_MODES.get(reader.image("tsc_mode"), ""),
        localtime=reader.image("localtime") == "1" or config.text("localtime") == "1",
        **(reader.hvm() if kind is XlType.HVM else {}),
        disks=tuple(reader.disks()),
        nics=tuple(reader.nics()),
        graphics=reader.graphics(hvm=kind is XlType.HVM),
    )


def _type(config: DomainConfig) -> XlType:
    if config.image()[:1] == ["pvh"]:
        return XlType.PVH
    return XlType.HVM if config.guest_type is GuestType.HVM else XlType.PV


def _refuse_devices(config: DomainConfig) -> None:
    for kind, _device in config.devices():
        if kind in REFUSED_CLASSES:
            reason = f"a {kind} device cannot be taken along: detach it before the migration"
            raise DomainError(config.name, reason)


def _number(text: str) -> int:
    found = re.fullmatch(r"-?\d{1,9}", text.partition(".")[0].rstrip("L"))
    return int(found[0]) if found else 0


def _weight(text: str) -> int:
    # Xen 3.0.x knew a share of the cpu, 1.0 unless told otherwise, and no weight of credits.
    return 0 if "." in text else _number(text)


class _Reader:
    # The parts of one configuration, each as xl wants it.

    def __init__(self, config: DomainConfig, rules: GuestRules) -> None:
        self._config = config
        self._rules = rules
        self._tree = config.image()

    def image(self, key: str) -> str:
        return sxp.child_text(self._tree, key)

    def action(self, key: str) -> str:
        value = self._config.text(key) or DEFAULT_ACTIONS[key]
        if value not in ACTIONS:
            raise DomainError(self._config.name, f"{key} {value} is not known")
        return ACTIONS[value]

    def affinity(self) -> tuple[tuple[int, ...], ...]:
        """Return the cpus of each vcpu; none at all unless one of them is bound."""
        said = sxp.child_value(self._config.tree, "cpus")
        if isinstance(said, list) and all(isinstance(item, str) for item in said):
            said = ",".join(map(str, said))  # of Xen 3.0.4: one list for all of them
        try:
            rows = affinity(said, self._config.vcpus)
        except ValueError:  # what cannot be read binds nothing: xend's had their own cpus
            return ()
        return rows if any(rows) else ()

    def hvm(self) -> dict[str, Any]:  # the fields of XlGuest that only HVM has
        known = {key: self.image(key) for key in HVM_SWITCHES}
        return {
            "rtc_timeoffset": _number(self.image("rtc_timeoffset")),
            "shadow_mib": _number(self._config.text("shadow_memory")),
            "video_mib": _number(self.image("videoram")),
            "stdvga": self.image("stdvga") == "1",
            "timer_mode": TIMER_MODES.get(self.image("timer_mode"), ""),
            "device_model": self.image("device_model_version") or TRADITIONAL,
            "switches": {key: value == "1" for key, value in known.items() if value},
            "texts": dict(self.texts()),
        }

    def texts(self) -> Iterator[tuple[str, str]]:
        for key, allowed in HVM_TEXTS.items():
            value = self.image(key)
            if value and self._rules.confined and not re.fullmatch(allowed, value):
                raise DomainError(self._config.name, f"{key} {value} is not allowed here")
            if value:
                yield key, value

    def disks(self) -> Iterator[XlDisk]:
        for kind, device in self._config.devices():
            if kind in ("vbd", "tap", "tap2"):
                yield read_disk(self._config.name, device, self._rules)

    def nics(self) -> Iterator[XlNic]:
        for kind, device in self._config.devices():
            if kind in ("vif", "vif2"):
                yield read_nic(self._config.name, device, self._rules)

    def graphics(self, *, hvm: bool) -> XlGraphics | None:
        """Return the frame buffer, of the vfb device or, for HVM, of the image."""
        for kind, device in self._config.devices():
            if kind == "vfb":
                return _graphics({key: sxp.child_text(device, key) for key in GRAPHICS_KEYS})
        if not hvm:
            return None
        return _graphics({key: self.image(key) for key in GRAPHICS_KEYS})


GRAPHICS_KEYS = ("type", "vnc", "sdl", "vncdisplay", "vncunused", "vncpasswd", "keymap")


def _graphics(said: Mapping[str, str]) -> XlGraphics:
    # 3.0.x names the one kind there is, later releases have a switch for each.
    kind = said["type"]
    # xend said both to qemu, which then tries that display before all others.
    unused, display = said["vncunused"] != "0", said["vncdisplay"]
    known = re.fullmatch(r"\d{1,5}", display) and (int(display) or not unused)
    return XlGraphics(
        vnc=said["vnc"] == "1" or kind == "vnc",
        sdl=said["sdl"] == "1" or kind == "sdl",
        display=int(display) if known else None,
        unused=unused or not known,
        password=said["vncpasswd"],
        keymap=said["keymap"] if re.fullmatch(r"[a-z-]{0,8}", said["keymap"]) else "",
    )
