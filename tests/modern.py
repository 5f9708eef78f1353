"""Build libxc v2 and v3 images, libxl streams and xl save files from named parts.

As `tests.streams`, this imports nothing of the codecs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tests.streams import CONTEXT_BYTES, NO_DATA, Entry, context, entries, hvm_context

END, PAGE_DATA, PV_INFO, P2M_FRAMES, BASIC, EXTENDED, XSAVE = range(7)
SHARED_INFO, TSC_INFO, HVM_CONTEXT, HVM_PARAMS = 7, 8, 9, 10
TOOLSTACK, MSRS, VERIFY, CHECKPOINT, DIRTY_PFNS, STATIC_DATA_END, CPUID, MSR = range(11, 19)

PV, HVM = 1, 2


def record(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def headers(guest: int, *, version: int = 3, xen: tuple[int, int] = (0, 1)) -> bytes:
    image = b"\xff" * 8 + b"XENF" + struct.pack(">IHHI", version, 0, 0, 0)
    return image + struct.pack("<IHHII", guest, 12, 0, *xen)


def page_data(items: Sequence[Entry]) -> bytes:
    words = [item.type << 60 | item.pfn for item in items]
    bodies = [item.data for item in items if item.type not in NO_DATA]
    body = struct.pack(f"<II{len(words)}Q", len(words), 0, *words) + b"".join(bodies)
    return record(PAGE_DATA, body)


def pv_info(width: int = 8) -> bytes:
    return record(PV_INFO, struct.pack("<BB6x", width, {8: 4, 4: 3}[width]))


def p2m_frames(first: int, last: int, *frames: int) -> bytes:
    return record(P2M_FRAMES, struct.pack(f"<II{len(frames)}Q", first, last, *frames))


def vcpu(kind: int, number: int, blob: bytes) -> bytes:
    return record(kind, struct.pack("<II", number, 0) + blob)


def tsc_info(
    mode: int = 2, khz: int = 2600123, nsec: int = 1 << 40, incarnation: int = 3
) -> bytes:
    return record(TSC_INFO, struct.pack("<IIQII", mode, khz, nsec, incarnation, 0))


def hvm_params(*params: tuple[int, int]) -> bytes:
    words = [word for param in params for word in param]
    return record(HVM_PARAMS, struct.pack(f"<II{len(words)}Q", len(params), 0, *words))


def pv_image(
    rounds: Sequence[Sequence[Entry]] = (),
    *,
    version: int = 3,
    width: int = 8,
    p2m_size: int = 64,
    vcpus: Sequence[int] = (0,),
    xsave: bytes = b"",
    msrs: bytes = b"",
    policies: bool = True,
) -> bytes:
    """Return a PV image as xg_sr_save.c orders it; `version` 2 has neither policies nor end."""
    rounds = rounds or (entries(range(p2m_size)),)
    count = -(-p2m_size * width // 4096)
    parts = [headers(PV, version=version, xen=(4, 17)), pv_info(width)]
    if version >= 3:
        if policies:
            parts += [record(CPUID, bytes(range(48))), record(MSR, bytes(range(16)))]
        parts.append(record(STATIC_DATA_END))
    parts.append(p2m_frames(0, p2m_size - 1, *range(4, 4 + count)))
    parts += [page_data(items) for items in rounds]
    parts += [tsc_info(), record(SHARED_INFO, bytes(4096))]
    for number in vcpus:
        parts.append(vcpu(BASIC, number, context(number, width)))
        parts.append(vcpu(EXTENDED, number, struct.pack("<II", number, 0x38).ljust(64, b"\x5a")))
        parts += [vcpu(XSAVE, number, xsave)] if xsave else []
        parts += [vcpu(MSRS, number, msrs)] if msrs else []
    assert CONTEXT_BYTES[width] == len(context(0, width))
    return b"".join(parts) + record(END)


def hvm_image(
    rounds: Sequence[Sequence[Entry]] = (),
    *,
    params: Sequence[tuple[int, int]] = ((1, 0xFEFFC), (5, 0xFEFFD), (6, 0xFEFFB)),
) -> bytes:
    """Return a HVM image as xg_sr_save.c orders it."""
    rounds = rounds or (entries(range(32)),)
    parts = [headers(HVM, xen=(4, 17)), record(CPUID, bytes(24)), record(STATIC_DATA_END)]
    parts += [page_data(items) for items in rounds]
    parts += [tsc_info(), record(HVM_CONTEXT, hvm_context()), hvm_params(*params)]
    return b"".join(parts) + record(END)


def emulator(kind: int, blob: bytes, *, emulator_id: int = 2, index: int = 0) -> bytes:
    """Return a libxl record about the device model: 2 its xenstore keys, 3 its state."""
    return record(kind, struct.pack("<II", emulator_id, index) + blob)


def libxl_stream(image: bytes, *emulators: bytes, options: int = 0) -> bytes:
    header = b"LibxlFmt" + struct.pack(">II", 2, options)
    return header + record(1) + image + b"".join(emulators) + record(0)


def xl_header(config: bytes, *, flags: int = 3) -> bytes:
    data = struct.pack("<I", len(config)) + config if config else b""
    magic = b"Xen saved domain, xl format\n \0 \r"
    return magic + struct.pack("<IIII", 0x01020304, flags, 0, len(data)) + data
