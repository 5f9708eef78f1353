"""What a received configuration may name on this host, and by which name it is known here.

A configuration that came over the wire is a claim: bridges, scripts, disks and kernels are mapped
by the operator's rules, and whatever then lies outside the allowed places is refused by its name.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from xendpy.config import MapKind, MapRow, XendConfig
from xendpy.errors import DomainError
from xendpy.hypervisor.hostfile import is_anybodys, kind_of

SCRIPT_DIR = "/etc/xen/scripts"
# What Xen's own hotplug package brings; others are mapped to one of these.
SCRIPTS = frozenset(("vif-bridge", "vif-nat", "vif-route", "vif-openvswitch"))
DEVICES = "/dev"
IMAGE_DIRS = ("/var/lib/libvirt/images", "/var/lib/xen/images", DEVICES)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRules:
    """The operator's mapping rows and allowed directories; `exists` looks at a path.

    `confined` false is for a configuration of this host's own operator: any path goes.
    """

    maps: tuple[MapRow, ...] = ()
    guest_paths: tuple[str, ...] = IMAGE_DIRS
    confined: bool = True
    exists: Callable[[str], bool] = os.path.exists

    @classmethod
    def of(cls, config: XendConfig) -> GuestRules:
        """Return the rules that the configuration file sets."""
        return cls(maps=config.maps, guest_paths=tuple(config.guest_paths.split()))

    def bridge(self, name: str) -> str:
        """Return the bridge that the guest's bridge is on this host."""
        return next((row.new for row in self._of(MapKind.BRIDGE) if row.old == name), name)

    def script(self, guest: str, path: str) -> str:
        """Return the base name of a network script that may be run here.

        Raises:
            DomainError: it is not one of those, or is not installed.
        """
        base = os.path.basename(path)
        base = next((row.new for row in self._of(MapKind.SCRIPT) if row.old == base), base)
        if not self.confined:
            return path if base == os.path.basename(path) else base
        if base not in SCRIPTS or not self.exists(f"{SCRIPT_DIR}/{base}"):
            raise DomainError(
                guest,
                f"vif script {path} is not allowed here: it must be one of"
                f" {', '.join(sorted(SCRIPTS))} in {SCRIPT_DIR}; see xendpy-map-script",
            )
        return base

    def disk(self, guest: str, path: str) -> str:
        """Return the path that a disk has on this host.

        Raises:
            DomainError: it lies outside the allowed directories, or is nothing to be a disk.
        """
        moved = self.moved_disk(path)
        self._confine(guest, "disk", moved, "xendpy-map-disk")
        return moved

    def moved_disk(self, path: str) -> str:
        """Return the path that a disk has on this host, allowed or not."""
        return self._moved(MapKind.DISK, path)

    def kernel(self, guest: str, path: str) -> str:
        """Return the path that a kernel or ramdisk has on this host; errors as `disk`."""
        moved = self._moved(MapKind.KERNEL, path)
        self._confine(guest, "kernel", moved, "xendpy-map-kernel")
        return moved

    def _of(self, kind: MapKind) -> Iterable[MapRow]:
        return (row for row in self.maps if row.kind is kind)

    def _moved(self, kind: MapKind, path: str) -> str:
        for row in self._of(kind):
            if path == row.old or path.startswith(row.old.rstrip("/") + "/"):
                return row.new + path[len(row.old) :]
        return path

    def allows_disk(self, path: str) -> bool:
        """Say whether `disk` takes that path, which is one of this host already."""
        try:
            self._confine("", "disk", path, "")
        except DomainError:
            return False
        return True

    def _confine(self, guest: str, what: str, path: str, option: str) -> None:
        if not self.confined:
            return
        if not self._is_inside(path):
            raise DomainError(
                guest,
                f"{what} {path} is not below {', '.join(self.guest_paths)}:"
                f" see xendpy-guest-paths and {option}",
            )
        if wrong := _misfit(what, path):
            raise DomainError(guest, f"{what} {path} {wrong}")

    def _is_inside(self, path: str) -> bool:
        if "\0" in path:
            return False
        # normpath and realpath: neither `..` nor a link may lead out of the directory.
        plain, real = os.path.normpath(path), os.path.realpath(path)
        return any(
            _is_below(plain, directory) and _is_below(real, os.path.realpath(directory))
            for directory in self.guest_paths
        )


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


def _misfit(what: str, path: str) -> str:
    """Say why what is there can be no disk or kernel; what is not there may yet come."""
    kind, real = kind_of(path), os.path.realpath(path)
    wanted = {"disk": ("a file", "a block device"), "kernel": ("a file",)}[what]
    if _is_below(real, DEVICES):  # where anybody may have files: /dev/shm
        if what == "kernel":
            return f"is below {DEVICES}, where no kernels are"
        wanted = ("a block device",)
        if is_anybodys(path, DEVICES):
            return "is named through a directory in which anybody may write"
    if kind and kind not in wanted:
        return f"is {kind}: {' or '.join(wanted)} was expected"
    return ""
