"""Whether a guest may come in, decided from its configuration alone, before the first page.

An old xend believes a guest sent once it lies in the socket buffers: what is refused here must be
refused in milliseconds, so nothing but xl's two lists and the file system is asked.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from xendpy import sxp
from xendpy.errors import DomainError, DomainExists, HypervisorError, OutOfMemory
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.hypervisor.base import Placement
from xendpy.hypervisor.hostfile import opened
from xendpy.hypervisor.xlguest import TRADITIONAL, XlGuest, XlType, read_guest
from xendpy.hypervisor.xllist import INCOMING, Listed, XenInfo
from xendpy.hypervisor.xlnic import bridge_is_missing
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.hypervisor.xlspool import Spool

log = logging.getLogger(__name__)

OVERHEAD_MIB = 2  # page tables and xl's own: 1 MiB a guest and a vcpu's share
DEVICE_MODELS = {
    TRADITIONAL: ("/usr/lib/xen*/bin/qemu-dm", "/usr/libexec/xen/bin/qemu-dm"),
    "qemu-xen": (
        "/usr/libexec/xen-qemu-system-i386",
        "/usr/lib/xen*/bin/qemu-system-i386",
        "/usr/libexec/xen/bin/qemu-system-i386",
        "/usr/bin/qemu-system-i386",
    ),
}
VIRT_BASE_32 = 1 << 32  # a 64-bit kernel lies above


@dataclass(slots=True, kw_only=True)
class Incoming:
    """One guest on its way in; `xl_name` is what xl calls it until it runs."""

    config: DomainConfig
    guest: XlGuest
    migration_id: str
    xl_name: str
    before: frozenset[int]
    pv32: bool
    spool: Spool | None = None

    @property
    def wanted_mib(self) -> int:
        """What the whole guest takes."""
        return _wanted_mib(self.guest)


class Admission:
    """Which guests are on their way in, and whether one more may be. The caller takes turns."""

    def __init__(self, rules: GuestRules) -> None:
        self._rules = rules
        self._incoming: list[Incoming] = []

    @property
    def rules(self) -> GuestRules:
        """What guests may name here, and by which name it is known."""
        return self._rules

    def names(self) -> frozenset[str]:
        """Return what xl calls the guests that are being built."""
        return frozenset(item.xl_name for item in self._incoming)

    def spool_bytes(self) -> int:
        """Return the room that the save files of guests on their way in may still take."""
        return sum(item.spool.left_bytes for item in self._incoming if item.spool is not None)

    def spools(self) -> frozenset[Path]:
        """Return the save files of guests that are on their way in."""
        return frozenset(item.spool.path for item in self._incoming if item.spool is not None)

    def admit(
        self,
        config: DomainConfig,
        migration_id: str,
        live: list[Listed],
        xen: XenInfo,
        leaving: Mapping[int, str],
    ) -> Incoming:
        """Reserve name and memory; `leaving` are the guests on their way out, by domid.

        `live` must have been asked for before `xen`: what a guest on its way in takes between the
        two is then counted twice rather than never.

        Raises:
            DomainExists: name or uuid is taken.
            OutOfMemory: there is not enough.
            DomainError: the configuration names what is not allowed or not there.
            HypervisorError: this hypervisor runs no such guest.
        """
        building = self.names()
        others = [guest for guest in live if guest.name not in building]
        own = _own_copy(config, migration_id, others, leaving)
        self._check_clash(config, [guest for guest in others if guest is not own])
        guest = read_guest(config, self._rules)
        _check_type(config, guest, xen)
        self._check_memory(guest, live, xen)
        _check_devices(guest, self._rules)
        if guest.boot.note:
            log.warning("%s: %s", config.name, guest.boot.note)
        if any(cpu >= xen.nr_cpus for cpus in guest.affinity for cpu in cpus):
            guest = replace(guest, affinity=())  # bound to cpus that this host does not have
        incoming = Incoming(
            config=config,
            guest=guest,
            migration_id=migration_id,
            xl_name=config.name + (INCOMING if own is not None else ""),
            before=frozenset(item.domid for item in others),
            pv32=xen.pv32,
        )
        self._incoming.append(incoming)
        return incoming

    def look(self, config: DomainConfig, xen: XenInfo) -> Placement:
        """Say how a guest would fit here, names, memory and the devices that it names apart."""
        objections, notes = [], []
        try:
            guest = read_guest(config, self._rules)
            if guest.boot.note:
                notes.append(guest.boot.note)
            _check_type(config, guest, xen)
            for nic in guest.nics:
                if nic.bridge_assumed and (missing := bridge_is_missing(nic, self._rules)):
                    objections.append(missing)
        except (DomainError, HypervisorError) as error:
            objections.append(error.reason)
        return Placement(
            bridge=self._rules.bridge,
            disk=self._rules.moved_disk,
            allows_disk=self._rules.allows_disk,
            objections=tuple(objections),
            notes=tuple(notes),
        )

    def release(self, incoming: Incoming) -> None:
        """Forget a guest: it is here, or will not come. May be called again."""
        self._incoming = [item for item in self._incoming if item is not incoming]

    def _check_clash(self, config: DomainConfig, live: Iterable[Listed]) -> None:
        for item in self._incoming:
            if config.uuid == item.config.uuid or config.name == item.config.name:
                text = f"Domain '{item.config.name}' is on its way in already"
                raise DomainExists(config.name, text)
        known = list(live)
        for guest in known:
            if guest.uuid == config.uuid:
                text = f"Domain '{config.name}' already exists with ID '{guest.domid}'"
                raise DomainExists(config.name, text)
        for guest in known:
            if guest.plain_name == config.name:
                text = f"VM name '{config.name}' already exists as domain {guest.domid}"
                raise DomainExists(config.name, text)

    def _check_memory(self, guest: XlGuest, live: Iterable[Listed], xen: XenInfo) -> None:
        wanted = _wanted_mib(guest)
        known = list(live)
        reserved = sum(max(0, item.wanted_mib - _has_mib(item, known)) for item in self._incoming)
        free = (xen.free_bytes >> 20) - reserved
        if wanted > free:
            raise OutOfMemory(
                f"{guest.name} needs {wanted} MiB, the hypervisor has {max(0, free)} MiB free",
                wanted_bytes=wanted << 20,
                free_bytes=max(0, free) << 20,
            )


def _wanted_mib(guest: XlGuest) -> int:
    return guest.memory_mib + guest.shadow_mib + guest.video_mib + OVERHEAD_MIB


def _has_mib(incoming: Incoming, live: Iterable[Listed]) -> int:
    """Return what Xen has given a guest on its way in: its uuid is there before its name is."""
    return sum(
        guest.memory_mib
        for guest in live
        if guest.uuid == incoming.config.uuid and guest.domid not in incoming.before
    )


def _own_copy(
    config: DomainConfig, migration_id: str, live: Iterable[Listed], leaving: Mapping[int, str]
) -> Listed | None:
    """Return the guest that this very migration takes away from this host."""
    for guest in live:
        if guest.uuid == config.uuid and leaving.get(guest.domid) == migration_id != "":
            return guest
    return None


def _check_type(config: DomainConfig, guest: XlGuest, xen: XenInfo) -> None:
    if config.guest_type not in xen.guest_types:
        kind = config.guest_type.upper()
        raise HypervisorError(f"this hypervisor runs no {kind} guests (xen_caps of `xl info`)")
    if config.guest_type is GuestType.PV and _is_32_bit(config) and not xen.pv32:
        raise HypervisorError(
            f"{config.name} is a 32-bit PV guest, and this hypervisor runs none: xen_caps of"
            " `xl info` has no xen-3.0-x86_32p"
        )
    if guest.type is XlType.HVM and not _found(DEVICE_MODELS.get(guest.device_model, ())):
        raise HypervisorError(
            f"{config.name} needs the device model {guest.device_model}, which is not installed"
            " here: its state means nothing to another one, so this guest must be shut down and"
            " started anew"
        )


def _is_32_bit(config: DomainConfig) -> bool:
    """Say whether the kernel's own notes, or its disks' protocol, tell of a 32-bit guest."""
    notes = sxp.child(config.image(), "notes")
    base = sxp.child_value(notes, "VIRT_BASE") if notes else None
    if isinstance(base, str) and base.rstrip("L").isdecimal():
        return int(base.rstrip("L")) < VIRT_BASE_32
    protocols = {sxp.child_value(device, "protocol") for _, device in config.devices()}
    return "x86_32-abi" in protocols


def _found(patterns: Iterable[str]) -> bool:
    return any(os.access(path, os.X_OK) for pattern in patterns for path in glob.glob(pattern))


def _check_devices(guest: XlGuest, rules: GuestRules) -> None:
    for nic in guest.nics:
        if missing := bridge_is_missing(nic, rules):
            raise DomainError(guest.name, missing)
    for disk in guest.disks:
        if disk.path:
            try:
                with opened(disk.path, writable=disk.writable):
                    pass
            except OSError as error:
                raise DomainError(
                    guest.name, f"disk {disk.path} cannot be opened here: {error.strerror}"
                ) from error
