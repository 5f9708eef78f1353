"""What a client sends to `create` and `new`, made into a whole configuration.

Source: XendConfig._sxp_to_xapi and XendDomainInfo.create, Xen 3.1 - 4.4: a `(vm ...)` list, with
numbers as numbers, and much left to the daemon: uuid, defaults, the console, the disks' details.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from xendpy import sxp
from xendpy.config import XendConfig
from xendpy.errors import DomainError, RpcError
from xendpy.guest.cpuset import affinity
from xendpy.guest.domain import DomainConfig, GuestType, kernel_arguments

_ERROR_GENERIC = 2
_SCRIPTS = "/etc/xen/scripts"
_DEFAULTS: tuple[tuple[str, str], ...] = (
    ("vcpus", "1"),
    ("on_poweroff", "destroy"),
    ("on_reboot", "restart"),
    ("on_crash", "restart"),
    ("on_xend_start", "ignore"),
    ("on_xend_stop", "ignore"),
    ("bootloader", ""),
    ("bootloader_args", ""),
    ("features", ""),
    ("description", ""),
    ("pool_name", "Pool-0"),
    ("cpu_weight", "256"),
    ("cpu_cap", "0"),
    ("shadow_memory", "0"),
)
_IMAGE_DEFAULTS = (("superpages", "0"), ("pci", None), ("nomigrate", "0"), ("tsc_mode", "0"))
# Only `xm` reads these, or the guest is built from them and they mean nothing afterwards.
_IGNORED = frozenset(("s3_integrity", "oos", "domid", "status", "state"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the daemon's own configuration says of guests that say nothing of it themselves."""

    vif_script: str = "vif-bridge"
    vncpasswd: str = ""
    keymap: str = ""

    @classmethod
    def of(cls, config: XendConfig) -> Defaults:
        """Take them from the options; of a script its name, without directory and arguments."""
        script = os.path.basename(config.vif_script.split(" ")[0])
        return cls(
            vif_script=script or cls().vif_script,
            vncpasswd=config.vncpasswd,
            keymap=config.keymap,
        )

    def screen(self, said: sxp.SxpList) -> sxp.SxpList:
        """Return a vfb device or an image, with what its VNC server is to have."""
        if sxp.child_value(said, "vnc") != "1" and sxp.child_value(said, "type") != "vnc":
            return said
        told = {"vncpasswd": self.vncpasswd, "keymap": self.keymap}
        return _with_defaults(said, **{key: value for key, value in told.items() if value})


PLAIN = Defaults()


def new_config(value: object, defaults: Defaults = PLAIN) -> DomainConfig:
    """Return the configuration that a client's nested list describes, completed.

    Raises:
        RpcError: not a list that could be one.
        DomainError: a key is missing or impossible.
    """
    tree = to_sxp(value)
    if not isinstance(tree, list) or not tree or tree[0] not in ("vm", "domain"):
        raise RpcError(_ERROR_GENERIC, "not a guest configuration: expected (vm ...)")
    entries = [item for item in tree[1:] if isinstance(item, list) and item]
    known = {str(item[0]) for item in entries}
    whole: sxp.SxpList = ["domain"]
    whole += [item for item in entries if item[0] not in _IGNORED and item[0] != "device"]
    if "image" not in known:
        whole.append(["image", ["linux", ["kernel", ""]]])
    if "uuid" not in known:
        whole.append(["uuid", str(uuid.uuid4())])
    whole += [[key, default] for key, default in _DEFAULTS if key not in known]
    whole += [["device", item] for item in _devices(entries, defaults)]
    return _with_image(_with_cpus(DomainConfig.from_sxp(whole)), defaults)


def to_sxp(value: object) -> sxp.SxpValue:
    """Return an XML-RPC value as xend's sxp printed it: atoms are text."""
    match value:
        case list() | tuple():
            return [to_sxp(item) for item in value]
        case dict():  # xm sends cpuid so, of every HVM guest
            return [[to_sxp(key), to_sxp(item)] for key, item in value.items()]
        case bool():
            return str(int(value))
        case int() | float() | str():
            return str(value)
        case None:
            return ""
        case _:
            raise RpcError(_ERROR_GENERIC, f"{type(value).__name__} has no place in an sxp")


def _with_cpus(config: DomainConfig) -> DomainConfig:
    """Keep as one list for each vcpu what `cpus`, or the older `cpu` of the first vcpu, says."""
    said, first = sxp.child_value(config.tree, "cpus"), config.text("cpu")
    if said is None and first.isdecimal():
        said = [first]
    if not said:
        return config
    try:
        rows = affinity(said, config.vcpus)
    except ValueError:
        raise DomainError(config.name, f"cpus {said}: expected like 0-3,^1,6") from None
    rest = [item for item in config.tree if not isinstance(item, list) or item[:1] != ["cpus"]]
    return DomainConfig.from_sxp([*rest, ["cpus", [[str(cpu) for cpu in row] for row in rows]]])


def _with_image(config: DomainConfig, defaults: Defaults) -> DomainConfig:
    image = list(config.image())
    if config.guest_type is GuestType.PV:
        image = _with_args(image)
    else:
        image = defaults.screen(image)
    known = {item[0] for item in image if isinstance(item, list) and item}
    for key, default in _IMAGE_DEFAULTS:
        if key not in known:
            image.append([key, [] if default is None else default])
    tree: sxp.SxpList = []
    for item in config.tree:
        tree.append(["image", image] if isinstance(item, list) and item[:1] == ["image"] else item)
    return DomainConfig.from_sxp(tree)


def _with_args(image: sxp.SxpList) -> sxp.SxpList:
    """Put `root=` and `ip=` in front of the kernel's arguments, as xend did."""
    args = kernel_arguments(image)
    kept: sxp.SxpList = []
    if sxp.child(image, "kernel") is None:  # a boot loader finds it
        image = [*image[:1], ["kernel", ""], *image[1:]]
    for item in image:
        if isinstance(item, list) and item and item[0] in ("ip", "root", "args"):
            continue
        kept.append(item)
        if isinstance(item, list) and item[:1] == ["kernel"] and args:
            kept.append(["args", args])
    return kept


def _devices(entries: list[sxp.SxpList], defaults: Defaults) -> Iterator[sxp.SxpList]:
    bootable_seen = False
    classes = set()
    for entry in entries:
        if entry[0] != "device" or len(entry) < 2 or not isinstance(entry[1], list):
            continue
        device = list(entry[1])
        if not device or not isinstance(device[0], str):
            continue
        classes.add(device[0])
        if device[0] in ("vbd", "tap", "tap2"):
            device = _disk(device, first=not bootable_seen)
            bootable_seen = True
        elif device[0] == "vif":
            script = f"{_SCRIPTS}/{defaults.vif_script}"
            device = _with_defaults(device, mac=_new_mac(), script=script)
        elif device[0] == "vfb":
            device = defaults.screen(device)
        yield _with_defaults(device, uuid=str(uuid.uuid4()), backend="0")
    if "console" not in classes:
        yield ["console", ["protocol", "vt100"], ["location", "2"], ["uuid", str(uuid.uuid4())]]


def _disk(device: sxp.SxpList, *, first: bool) -> sxp.SxpList:
    shown: sxp.SxpList = []
    for item in device:
        if isinstance(item, list) and item[:1] == ["dev"] and isinstance(item[-1], str):
            name = item[-1]
            item = ["dev", name if ":" in name else f"{name}:disk"]
        shown.append(item)
    return _with_defaults(
        shown, protocol="x86_64-abi", bootable=str(int(first)), mode="r", backend="0", VDI=""
    )


def _with_defaults(device: sxp.SxpList, **defaults: str) -> sxp.SxpList:
    known = {item[0] for item in device if isinstance(item, list) and item}
    return device + [[key, value] for key, value in defaults.items() if key not in known]


def _new_mac() -> str:
    """Return an address in Xen's own range, 00:16:3e, as xend chose them."""
    low = os.urandom(3)
    return f"00:16:3e:{low[0] & 0x7F:02x}:{low[1]:02x}:{low[2]:02x}"
