"""A guest's configuration as xend writes it, and what a driver says of a guest.

Source: XendConfig.py and XendDomainInfo.py, Xen 3.0.3 - 4.4: `(domain (key value) ... (image ...)
(device ...) ...)`. The key order is that of a Python dictionary: nothing here relies on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum

from xendpy import sxp
from xendpy.errors import DomainError

NAME_PATTERN = re.compile(r"[A-Za-z0-9_\-.:+]+")  # XendDomainInfo.py check_name
UUID_PATTERN = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE
)
MAX_VCPUS = 4096  # libxc of Xen >= 4.2
MAX_MEMORY_MIB = 1 << 20  # 1 TiB: 2^28 pfns, the legacy stream's limit


class GuestType(StrEnum):
    """Para-virtualized or fully virtualized (PVH travels as HVM)."""

    PV = "pv"
    HVM = "hvm"


class DomainState(Enum):
    """What a guest is doing; the value is xend's six state characters (r b p s c d)."""

    RUNNING = "r-----"
    BLOCKED = "-b----"
    PAUSED = "--p---"
    SUSPENDED = "---s--"
    SHUTDOWN = "---s-- "  # trailing blank: SUSPENDED and SHUTDOWN print alike and differ here
    CRASHED = "----c-"
    DYING = "-----d"
    INCOMING = "--p--- "

    @property
    def flags(self) -> str:
        return self.value.rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainConfig:
    """A guest's configuration, checked; `tree` is the whole of it, `raw` its bytes as received.

    `raw` is what is sent on unchanged; it is empty for a configuration that was made here.
    """

    name: str
    uuid: str
    guest_type: GuestType
    memory_mib: int
    maxmem_mib: int
    vcpus: int
    tree: sxp.SxpList = field(compare=False)
    raw: bytes = field(default=b"", compare=False)

    @classmethod
    def parse(cls, raw: bytes, *, max_depth: int = 64) -> DomainConfig:
        """Return the configuration that `raw`, one s-expression, holds.

        Raises:
            SxpError: the bytes are no s-expression.
            DomainError: a key that a guest cannot do without is missing or impossible.
        """
        return cls.from_sxp(sxp.parse_one(raw, max_depth=max_depth), raw=raw)

    @classmethod
    def from_sxp(cls, tree: sxp.SxpValue, *, raw: bytes = b"") -> DomainConfig:
        """Return the configuration of a parsed `(domain ...)` or `(vm ...)` list."""
        if not isinstance(tree, list) or not tree or tree[0] not in ("domain", "vm"):
            raise DomainError("", "not a guest configuration: expected (domain ...)")
        name = _name(tree)
        memory = _number(tree, "memory", name)
        if not 0 < memory <= MAX_MEMORY_MIB:
            raise DomainError(name, f"memory must be 1 to {MAX_MEMORY_MIB} MiB, not {memory}")
        maxmem = _number(tree, "maxmem", name, default=memory) or memory
        if not 0 < maxmem <= MAX_MEMORY_MIB:
            raise DomainError(name, f"maxmem must be 1 to {MAX_MEMORY_MIB} MiB, not {maxmem}")
        vcpus = _number(tree, "vcpus", name, default=1)
        if not 0 < vcpus <= MAX_VCPUS:
            raise DomainError(name, f"vcpus must be 1 to {MAX_VCPUS}, not {vcpus}")
        return cls(
            name=name,
            uuid=_uuid(tree, name),
            guest_type=_guest_type(tree, name),
            memory_mib=memory,
            maxmem_mib=max(memory, maxmem),
            vcpus=vcpus,
            tree=tree,
            raw=raw,
        )

    @property
    def online_vcpus(self) -> int:
        """How many of the vcpus a guest starts with: `vcpu_avail` is a mask of them."""
        mask = self.text("vcpu_avail").rstrip("L")
        online = int(mask).bit_count() if re.fullmatch(r"\d{1,40}", mask) else self.vcpus
        return min(max(online, 1), self.vcpus)

    def image(self) -> sxp.SxpList:
        """Return the image list, `['linux', ['kernel', ...], ...]`, or an empty one."""
        value = sxp.child_value(self.tree, "image")
        return value if isinstance(value, list) else []

    def devices(self) -> Iterator[tuple[str, sxp.SxpList]]:
        """Yield (class, `[class, [key, value], ...]`) of every device."""
        for entry in sxp.children(self.tree, "device"):
            if len(entry) > 1 and isinstance(entry[1], list) and entry[1]:
                device = entry[1]
                if isinstance(device[0], str):
                    yield device[0], device

    def text(self, key: str, default: str = "") -> str:
        """Return the value of a top-level key that holds one string."""
        value = sxp.child_value(self.tree, key)
        return value if isinstance(value, str) else default

    def encode(self) -> bytes:
        """Return the bytes to put on the wire: those received, or the tree printed."""
        return self.raw or sxp.encode(self.tree)

    def renamed(self, name: str) -> DomainConfig:
        """Return the same guest under another name; its bytes are printed anew."""
        return self.with_values(name=name)

    def with_values(self, **values: str | int) -> DomainConfig:
        """Return a copy with top-level keys (underscored) set, keeping everything else."""
        tree = list(self.tree)
        for key, value in values.items():
            entry: sxp.SxpList = [key, str(value)]
            for index, item in enumerate(tree):
                if isinstance(item, list) and item and item[0] == key:
                    tree[index] = entry
                    break
            else:
                tree.append(entry)
        return replace(DomainConfig.from_sxp(tree), raw=b"")


def kernel_arguments(image: sxp.SxpList) -> str:
    """Return a kernel's whole command line: what xm's `ip` and `root` said, then `args`.

    Xen 3.0.3 keeps the three apart and joins them for each boot; later releases store them joined.
    """
    words = []
    for key, prefix in (("ip", "ip="), ("root", "root="), ("args", "")):
        if value := sxp.child_text(image, key):
            words.append(prefix + value)
    return " ".join(words)


def _name(tree: sxp.SxpList) -> str:
    name = sxp.child_value(tree, "name")
    if not isinstance(name, str) or not name:
        raise DomainError("", "Missing VM Name")
    if not NAME_PATTERN.fullmatch(name):
        raise DomainError(name, "Invalid VM Name")
    return name


def _uuid(tree: sxp.SxpList, name: str) -> str:
    uuid = sxp.child_value(tree, "uuid")
    if not isinstance(uuid, str) or not UUID_PATTERN.fullmatch(uuid):
        raise DomainError(name, f"uuid must be 8-4-4-4-12 hex digits, not {sxp.show(uuid)}")
    return uuid.lower()


def _number(tree: sxp.SxpList, key: str, name: str, default: int | None = None) -> int:
    value = sxp.child_value(tree, key)
    if value is None and default is not None:
        return default
    # 3.0.3 prints some numbers as floats, every release quotes longs.
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,15}(\.0+)?L?", value):
        raise DomainError(name, f"{key} must be a number, not {sxp.show(value)}")
    return int(value.rstrip("L").partition(".")[0])


def _guest_type(tree: sxp.SxpList, name: str) -> GuestType:
    image = sxp.child_value(tree, "image")
    if not isinstance(image, list) or not image:
        raise DomainError(name, "no image: expected (image (linux ...)) or (image (hvm ...))")
    # xend decides by the presence of `boot`, 3.0.x by the name of the list.
    hvm = (
        image[0] == "hvm"
        or sxp.child(image, "boot") is not None
        or sxp.child(tree, "HVM_boot") is not None
    )
    return GuestType.HVM if hvm else GuestType.PV


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSummary:
    """What a driver says of one guest, at the moment it was asked.

    `domid` is None for a guest that is not live here. `note` is a line for the operator (in
    doubt, partial ...), empty when there is nothing to say. `at_rest`: the driver keeps it and
    has no vcpu running for it, whatever a pause would say. `received`: another host sent it, or a
    save file held it; its configuration is a claim (see origin).
    """

    domid: int | None
    uuid: str
    name: str
    state: DomainState
    memory_mib: int
    maxmem_mib: int
    vcpus: int
    online_vcpus: int
    cpu_time_s: float
    start_time_s: float  # seconds since the epoch, this host's clock
    config: DomainConfig
    note: str = ""
    at_rest: bool = False
    received: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A guest that a driver knows: enough to name it in the next call."""

    domid: int
    uuid: str
    name: str
