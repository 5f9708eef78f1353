"""Disks: xend's `uname` and `dev` as xl's target, format and virtual device.

Sources: blkif.py and server/BlktapController.py, Xen 4.4; xl-disk-configuration(5), Xen 4.17.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from xendpy import sxp
from xendpy.errors import DomainError
from xendpy.hypervisor.xlrules import GuestRules

# blktap's drivers by what their images are; `sync` is `aio` without asynchronous I/O.
TAP_FORMATS = {"aio": "raw", "sync": "raw", "qcow": "qcow", "qcow2": "qcow2", "vhd": "vhd"}
EMPTY = ("", "None")
UNAME = re.compile(
    r"(?:(?P<plain>phy|file)|(?:tap2?:)(?:tapdisk:)?(?P<tap>[a-z0-9]+)):(?P<path>.+)", re.DOTALL
)
DEVICE = re.compile(
    r"(?:/dev/)?(?:ioemu:)?(?P<vdev>[a-z]{2,5}[0-9]{0,3}|[0-9]{1,9}|0x[0-9a-f]{1,7})"
    r"(?::(?P<kind>disk|cdrom))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class XlDisk:
    """One disk; an empty `path` is a drive with no medium."""

    vdev: str
    path: str
    format: str = "raw"
    writable: bool = False
    cdrom: bool = False


def read_disk(guest: str, device: sxp.SxpList, rules: GuestRules) -> XlDisk:
    """Return the disk that a vbd, tap or tap2 device describes.

    Raises:
        DomainError: it lies where it must not, has another backend than domain 0, or a driver
            that xl does not have.
    """
    uname, dev = sxp.child_text(device, "uname"), sxp.child_text(device, "dev")
    found = DEVICE.fullmatch(dev)
    if found is None:
        raise DomainError(guest, f"disk {uname} has the device {dev!r}, which is none")
    backend = sxp.child_text(device, "backend") or "0"
    if uname not in EMPTY and backend not in ("0", "Domain-0"):
        raise DomainError(guest, f"vbd {dev} backend {backend}: only domain 0 can serve it here")
    cdrom = found["kind"] == "cdrom"
    if uname in EMPTY:
        return XlDisk(vdev=found["vdev"], path="", format="empty", cdrom=True)
    path, image_format = _target(guest, uname)
    return XlDisk(
        vdev=found["vdev"],
        path=rules.disk(guest, path),
        format=image_format,
        writable=not cdrom and sxp.child_text(device, "mode").startswith("w"),
        cdrom=cdrom,
    )


def _target(guest: str, uname: str) -> tuple[str, str]:
    found = UNAME.fullmatch(uname)
    if found is None:
        raise DomainError(guest, f"disk {uname} is of a kind that is not known")
    path = found["path"]
    if found["tap"] and found["tap"] not in TAP_FORMATS:
        raise DomainError(guest, f"disk {uname}: xl has no driver {found['tap']}")
    if re.search(r"[\x00-\x1f,'\"]", path):
        raise DomainError(guest, f"disk {uname!r}: characters that no path should have")
    absolute = path if path.startswith("/") else f"/dev/{path}"
    return absolute, TAP_FORMATS.get(found["tap"] or "", "raw")
