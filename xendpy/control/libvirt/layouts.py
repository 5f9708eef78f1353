"""What each procedure takes, and which of its flags are known here: the shape of a call's body.

Source: libvirt's src/remote/remote_protocol.x and libvirt-domain.h (facts). A call is checked
against its row before its handler sees it: bytes that are missing or left over change nothing, and
a flag that nobody here looks at is refused and never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from xendpy.control.libvirt.wire import Code
from xendpy.control.libvirt.xdr import Reader
from xendpy.errors import RpcError

FLAGS = "flags"  # a u32, whose bits are in KNOWN
ANY = 0xFFFFFFFF

# Flags of 64 bits, those of a migration, are u64 here: their handlers name the options.
LAYOUTS: Mapping[int, str] = {
    1: "opt-string flags", 2: "", 3: "", 4: "", 5: "opt-string", 6: "", 7: "",
    9: "domain", 10: "string flags", 11: "string", 12: "domain", 14: "domain flags",
    15: "domain", 16: "domain", 17: "domain", 18: "domain", 19: "domain",
    20: "domain i32 i32", 21: "i32", 22: "i32", 23: "string", 24: "uuid",
    25: "", 27: "domain flags", 28: "domain", 29: "domain i32", 30: "domain u64",
    31: "domain u64", 32: "domain u32", 33: "domain", 34: "domain", 35: "domain", 37: "i32",
    51: "", 54: "string", 55: "domain string", 59: "", 60: "i32",
    61: "opt-string u64 opt-string u64",
    62: "domain opaque string u64 opt-string u64",
    63: "string opaque string u64",
    66: "", 77: "string flags", 78: "pool flags", 79: "pool flags", 80: "pool", 82: "pool",
    83: "pool flags", 84: "string", 86: "volume", 87: "pool", 88: "pool flags", 90: "pool i32",
    91: "pool", 92: "pool i32", 93: "pool string flags", 94: "volume flags", 95: "pool string",
    97: "string", 98: "volume", 99: "volume flags", 100: "volume", 101: "i32 i32", 102: "",
    108: "opt-string u64 opt-string u64 string",
    109: "string opaque string u64 i32",
    110: "", 122: "", 135: "string string flags", 136: "string string flags", 149: "",
    150: "domain", 151: "domain", 157: "", 159: "domain u32 flags", 163: "domain",
    164: "domain", 166: "domain u64 flags", 182: "domain flags", 183: "domain flags",
    184: "domain flags", 196: "domain flags", 199: "domain u32 flags", 200: "domain flags",
    204: "domain u64 flags", 207: "domain u64 flags", 212: "domain flags",
    228: "i32 i32 flags", 230: "domain i32 i32 flags",
    231: "domain flags", 232: "domain string opt-string flags", 233: "string opt-string flags",
    234: "domain flags", 235: "string flags", 242: "domain flags", 258: "domain flags",
    273: "i32 flags", 281: "i32 flags", 282: "pool i32 flags", 283: "i32 flags", 284: "i32 flags",
    285: "i32 flags", 286: "i32 flags", 287: "i32 flags", 293: "i32 i32 flags",
    298: "domain flags",
    316: "i32 opt-domain", 317: "i32",
    342: "opt-string opt-string opt-string opt-string flags",
    344: "domains u32 flags", 350: "string flags", 358: "domain opt-string flags",
    387: "domain flags", 388: "domain flags", 426: "domain flags", 442: "domain flags",
}  # fmt: skip

# What is not here knows none.
KNOWN: Mapping[int, int] = {
    1: 0x3,  # read only; no aliases: there are none
    10: 0x1,  # paused
    14: 0xF,  # secure, inactive, update-cpu, migratable: one and the same XML
    27: 0x10,  # paravirt, which is how a guest is asked anyhow
    88: 0x1,  # inactive: one and the same XML
    182: 0x3,  # bypass-cache changes nothing; running is what a start does anyhow
    196: 0x1,  # paused
    199: 0x7,  # live, config, maximum
    200: 0x7, 204: 0x7,
    230: 0x3,  # live, config
    231: 0x13,  # managed-save, and the metadata of snapshots and checkpoints: there are none
    232: 0x3,  # as 182
    233: 0x7,  # and paused
    235: 0x1,  # secure: one and the same XML
    258: 0x10,  # as 27
    273: 0xFFFF,  # which guests
    281: ANY,  # which pools, and so on
    283: ANY, 284: ANY, 285: ANY, 286: ANY, 287: ANY,
    298: 0x3,  # completed; keep-completed is what happens anyhow
    344: 0xE00000FF,  # which guests; no-wait, backing and enforce
    388: 0x1,  # as 235
    426: 0x3,  # which kind
}  # fmt: skip

_MODES = {0x1: "--mode acpi", 0x2: "--mode agent", 0x4: "--mode initctl", 0x8: "--mode signal"}
# What virsh calls flags that are refused, for the text.
_NAMES: Mapping[int, Mapping[int, str]] = {
    10: {0x2: "--autodestroy"},
    12: {0x1: "--graceful"},
    27: _MODES,
    196: {0x2: "--autodestroy", 0x4: "--bypass-cache", 0x8: "--force-boot"},
    199: {0x8: "--guest", 0x10: "--hotpluggable"},
    200: {0x8: "--guest"},
    231: {0x4: "--nvram", 0x8: "--keep-nvram", 0x20: "--tpm", 0x40: "--keep-tpm"},
    234: {0x1: "--graceful", 0x2: "--remove-logs"},
    258: _MODES,
}  # fmt: skip

_READERS: Mapping[str, Callable[[Reader], object]] = {
    "i32": Reader.i32,
    "u32": Reader.u32,
    "u64": Reader.u64,
    "string": Reader.string,
    "opt-string": Reader.opt_string,
    "opaque": Reader.opaque,
    "uuid": Reader.uuid,
    "domain": Reader.domain,
    "opt-domain": lambda reader: reader.optional(reader.domain),
    "domains": lambda reader: reader.items(reader.domain),
    "pool": Reader.pool,
    "volume": Reader.volume,
    FLAGS: Reader.u32,
}

_CHECKS = {
    procedure: tuple((word, _READERS[word]) for word in layout.split())
    for procedure, layout in LAYOUTS.items()
}


def check_arguments(procedure: int, body: bytes) -> None:
    """Check that a body is what the procedure takes, to the last byte.

    Raises:
        RpcError: it is not, or has a flag that is not known.
    """
    reader = Reader(body)
    flags = 0
    for word, read in _CHECKS[procedure]:
        value = read(reader)
        if word == FLAGS:
            assert isinstance(value, int)
            flags = value
    reader.end()
    refuse_flags(flags, KNOWN.get(procedure, 0), _NAMES.get(procedure, {}))


def refuse_flags(flags: int, known: int, names: Mapping[int, str]) -> None:
    """Refuse what is not known: a flag that is passed over would be a lie.

    Raises:
        RpcError: ARGUMENT_UNSUPPORTED, with the flags that are too many.
    """
    unknown = flags & ~known
    if not unknown:
        return
    named = [name for bit, name in names.items() if unknown & bit]
    if named:
        reason = f"{', '.join(named)} is not supported by xendpy"
        raise RpcError(Code.ARGUMENT_UNSUPPORTED, reason)
    raise RpcError(Code.ARGUMENT_UNSUPPORTED, f"unsupported flags ({unknown:#x})")
