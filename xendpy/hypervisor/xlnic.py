"""Network interfaces: xend's vif as xl's.

Sources: server/netif.py, Xen 3.0.3 - 4.4; xl-network-configuration(5) and libxl_nic.c, Xen 4.17.
"""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass

from xendpy import sxp
from xendpy.errors import DomainError
from xendpy.hypervisor.xlrules import GuestRules

MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
DEFAULT_BRIDGE = "xenbr0"  # libxl's, where none is named; a xend took the first that it found
DEFAULT_SCRIPT = "vif-bridge"
BRIDGING = (DEFAULT_SCRIPT, "vif-openvswitch")


@dataclass(frozen=True, slots=True, kw_only=True)
class XlNic:
    """A network interface; what is empty is left to xl. `bridge_assumed`: none was named."""

    mac: str = ""
    bridge: str = ""
    bridge_assumed: bool = False
    script: str = ""
    model: str = ""
    ip: str = ""
    ifname: str = ""
    emulated: bool = False


def read_nic(guest: str, device: sxp.SxpList, rules: GuestRules) -> XlNic:
    """Return the interface that a vif describes.

    Raises:
        DomainError: it names a script that may not be run here, has another backend than domain
            0, or a value that is none.
    """
    keys = ("mac", "bridge", "script", "model", "vifname", "ip", "type")
    said = {key: _text(device, key) for key in keys}
    _check_backend(guest, device)
    if said["mac"] and not MAC.fullmatch(said["mac"]):
        raise DomainError(guest, f"vif mac {said['mac']} is none")
    for key in ("bridge", "model", "vifname"):
        if not re.fullmatch(r"[A-Za-z0-9_.:-]{0,32}", said[key]):
            raise DomainError(guest, f"vif {key} {said[key]} is not allowed here")
    script = rules.script(guest, said["script"]) if said["script"] else ""
    return XlNic(
        mac=said["mac"],
        bridge=_bridge(said["bridge"], script, rules),
        bridge_assumed=not said["bridge"],
        script=script,
        model=said["model"],
        ip=said["ip"] if re.fullmatch(r"[0-9a-fA-F:. /]*", said["ip"]) else "",
        ifname=said["vifname"],
        emulated=said["type"] == "ioemu",
    )


def bridge_is_missing(nic: XlNic, rules: GuestRules) -> str:
    """Say which bridge the interface needs and this host lacks; empty if none."""
    # Open vSwitch's are known to itself alone, and other scripts need none.
    if not nic.bridge or os.path.basename(nic.script or DEFAULT_SCRIPT) != DEFAULT_SCRIPT:
        return ""
    if rules.exists(f"/sys/class/net/{nic.bridge}/bridge"):
        return ""
    if nic.bridge_assumed:
        return (
            f"a vif names no bridge, and {nic.bridge} does not exist here:"
            " see (xendpy-map-bridge '' NEW)"
        )
    return f"bridge {nic.bridge} does not exist here: see xendpy-map-bridge"


def _bridge(name: str, script: str, rules: GuestRules) -> str:
    if name:
        return rules.bridge(name)
    if os.path.basename(script or DEFAULT_SCRIPT) not in BRIDGING:
        return ""
    # A guest of this host's operator is left to xl.conf, which may name another default.
    return rules.bridge("") or (DEFAULT_BRIDGE if rules.confined else "")


def _check_backend(guest: str, device: sxp.SxpList) -> None:
    # Ids and names of driver domains differ between hosts.
    backend = _text(device, "backend") or "0"
    if backend not in ("0", "Domain-0"):
        raise DomainError(guest, f"vif backend {backend}: only domain 0 can serve it here")


def _text(device: sxp.SxpList, key: str) -> str:
    value = sxp.child_value(device, key)
    return value if isinstance(value, str) else ""
