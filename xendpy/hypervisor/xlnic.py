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

# A limit as an operator writes it and Xen 3.0.x shows it; later xends show what they wrote to
# xenstore: bytes, microseconds.
RATE = re.compile(
    r"(?P<amount>[0-9]{1,20})(?P<scale>[GMK]?)(?P<unit>[Bb])/s"
    r"(?:@(?P<time>[0-9]{1,20})(?P<fraction>[mu]?)s)?"
)
CREDIT = re.compile(r"(?P<bytes>[0-9]{1,20}),(?P<usecs>[0-9]{1,20})")
SCALES = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}
FRACTIONS = {"": 1000**2, "m": 1000, "u": 1}
DEFAULT_INTERVAL_USECS = 50_000
UINT32_MAX = (1 << 32) - 1  # netback's own limits, and of each number in xl's text


@dataclass(frozen=True, slots=True)
class Rate:
    """What a guest may send: `length_bytes` in each `interval_usecs`."""

    length_bytes: int
    interval_usecs: int

    def __str__(self) -> str:
        """Return the text that xl and every xend read back as the same limit."""
        # Rounded up, for it is rounded down again when it is read.
        amount, scales = -(-self.length_bytes * 1000**2 // self.interval_usecs), list(SCALES)
        while len(scales) > 1 and (amount % 1000 == 0 or amount > UINT32_MAX):
            amount //= 1000
            del scales[0]
        return f"{amount}{scales[0]}B/s@{self.interval_usecs}us"


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
    rate: Rate | None = None


def read_nic(guest: str, device: sxp.SxpList, rules: GuestRules) -> XlNic:
    """Return the interface that a vif describes.

    Raises:
        DomainError: it names a script that may not be run here, has another backend than domain
            0, or a value that is none.
    """
    keys = ("mac", "bridge", "script", "model", "vifname", "ip", "type")
    said = {key: sxp.child_text(device, key) for key in keys}
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
        rate=read_rate(sxp.child_text(device, "rate")),
    )


def read_rate(text: str) -> Rate | None:
    """Return the limit that `rate` means; None for what a xend took for none, as nonsense."""
    if found := CREDIT.fullmatch(text):
        length_bytes, interval_usecs = int(found["bytes"]), int(found["usecs"])
    elif found := RATE.fullmatch(text):
        per_s = int(found["amount"]) * SCALES[found["scale"]] // (8 if found["unit"] == "b" else 1)
        interval_usecs = DEFAULT_INTERVAL_USECS
        if found["time"]:
            interval_usecs = int(found["time"]) * FRACTIONS[found["fraction"]]
        length_bytes = per_s * interval_usecs // 1000**2
    else:
        return None
    if not (0 < length_bytes <= UINT32_MAX and 0 < interval_usecs <= UINT32_MAX):
        return None
    return Rate(length_bytes, interval_usecs)


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
    backend = sxp.child_text(device, "backend") or "0"
    if backend not in ("0", "Domain-0"):
        raise DomainError(guest, f"vif backend {backend}: only domain 0 can serve it here")
