"""Build legacy libxc images and xend envelopes from named parts.

Knows the format by itself and imports nothing of the codecs, so that both are told apart when
they disagree. `pv_image` and `hvm_image` make whole images; the functions above them make the
parts for those who want something odd.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

PAGE = 4096
CONTEXT_BYTES = {8: 5168, 4: 2800}
UUID = "6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10"

NOTAB, L1, L2, L3, L4 = 0x0, 0x1, 0x2, 0x3, 0x4
PINNED, BROKEN, XALLOC, XTAB = 0x8, 0xD, 0xE, 0xF
NO_DATA = (BROKEN, XALLOC, XTAB)

VERIFY, VCPU_INFO, TSC_INFO, LAST_CHECKPOINT = -1, -2, -7, -9
TMEM, COMPRESSED_DATA, TOOLSTACK = -5, -12, -18

# chunk ids by HVM parameter
PARAM_CHUNKS = {12: -3, 15: -4, 17: -8, 19: -10, 9: -11, 34: -14, 27: -15, 28: -16, 29: -17}
DEFAULT_PARAMS = {12: 0xFEFFE000, 15: 0xFEFF8000, 17: 0xFEFFF, 19: 1}
QEMU_STATE = b"QEVM" + struct.pack(">I", 3) + bytes(range(200))


@dataclass(frozen=True)
class Entry:
    """One entry of a batch; `data` is empty for the types that have none."""

    pfn: int
    type: int = NOTAB
    data: bytes = b""


def page(seed: int) -> bytes:
    """Return 4096 bytes that depend on `seed` alone."""
    return random.Random(seed).randbytes(PAGE)


def entries(pfns: Iterable[int], salt: int = 0, type: int = NOTAB) -> list[Entry]:
    """Return ordinary pages; `salt` tells the rounds of a live migration apart."""
    return [Entry(pfn, type, page(salt << 32 | pfn)) for pfn in pfns]


def ul(width: int, *values: int) -> bytes:
    """Return `values` as unsigned longs of the sender's tools."""
    return struct.pack(f"<{len(values)}{'IQ'[width == 8]}", *values)


def batch(items: Sequence[Entry], *, width: int = 8, sign_extended: bool = False) -> bytes:
    """Return a page batch; `sign_extended` as 3.0.x does it on 64 bits."""
    words = [item.type << 28 | item.pfn for item in items]
    if sign_extended and width == 8:
        words = [word | 0xFFFFFFFF << 32 if word >> 31 else word for word in words]
    bodies = [item.data for item in items if item.type not in NO_DATA]
    assert all(len(body) == PAGE for body in bodies)
    return struct.pack("<i", len(items)) + ul(width, *words) + b"".join(bodies)


def chunk(number: int, body: bytes = b"") -> bytes:
    return struct.pack("<i", number) + body


def tsc_info(
    mode: int = 2, khz: int = 2600123, nsec: int = 1 << 40, incarnation: int = 3
) -> bytes:
    return chunk(TSC_INFO, struct.pack("<IQII", mode, nsec, khz, incarnation))


def vcpu_info(highest: int, ids: Iterable[int]) -> bytes:
    online = sum(1 << vcpu for vcpu in ids)
    words = online.to_bytes((highest // 64 + 1) * 8, "little")
    return chunk(VCPU_INFO, struct.pack("<i", highest) + words)


def hvm_value(number: int, value: int) -> bytes:
    return chunk(number, struct.pack("<IQ", 0, value))


def ext_info(
    guest_width: int,
    *,
    width: int = 8,
    context: bytes = b"",
    extv: bool = True,
    xcnt: int | None = None,
    extra: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return the extended-info block; `extra` are blocks of other ids."""
    blocks = [(b"vcpu", context or bytes(CONTEXT_BYTES[guest_width])), *extra]
    if extv:
        blocks.append((b"extv", b""))
    if xcnt is not None:
        blocks.append((b"xcnt", struct.pack("<I", xcnt)))
    body = b"".join(name + struct.pack("<I", len(data)) + data for name, data in blocks)
    return ul(width, (1 << 8 * width) - 1) + struct.pack("<I", len(body)) + body


def p2m_frames(p2m_size: int, guest_width: int, *, width: int = 8, first: int = 4) -> bytes:
    """Return a p2m frame list of consecutive pfns; no kernel has its p2m at pfn 0."""
    count = -(-p2m_size * guest_width // PAGE)
    return ul(width, *(min(first + n, p2m_size - 1) for n in range(count)))


def context(vcpu: int, guest_width: int) -> bytes:
    return random.Random(f"context {vcpu}").randbytes(CONTEXT_BYTES[guest_width])


def pv_tail(
    vcpus: Iterable[int],
    guest_width: int,
    *,
    width: int = 8,
    unmapped: Sequence[int] = (),
    extv: bool = True,
    xcnt: int | None = None,
    shared_info: bytes = bytes(PAGE),
) -> bytes:
    parts = [struct.pack("<I", len(unmapped)), ul(width, *unmapped)]
    for vcpu in vcpus:
        parts.append(context(vcpu, guest_width))
        if extv:
            parts.append(struct.pack("<II", vcpu, 0x38).ljust(128, b"\x5a"))
        if xcnt is not None:
            parts.append(struct.pack("<QQ", 7, xcnt - 16) + bytes([vcpu]) * (xcnt - 16))
    return b"".join(parts) + shared_info


def hvm_context(length: int = 128) -> bytes:
    header = struct.pack("<HHIIIQII", 1, 0, 24, 0x54381286, 1, 0, 0x206A7, 0)
    return header + bytes(length) + struct.pack("<HHI", 0, 0, 0)


def qemu_record(state: bytes = QEMU_STATE, signature: bytes = b"QemuDeviceModelRecord") -> bytes:
    """Return a device-model record; only xend's own has no length."""
    length = b"" if signature == b"QemuDeviceModelRecord" else struct.pack("<I", len(state))
    return signature + length + state


def hvm_tail(
    *,
    magic: tuple[int, int, int] = (0xFEFFD, 0xFEFFB, 0xFEFFC),
    context: bytes = b"",
    device_model: bytes | None = None,
) -> bytes:
    """Return ioreq, bufioreq and store pfn, the HVM context, the device-model record."""
    body = context or hvm_context()
    tail = struct.pack("<QQQI", *magic, len(body)) + body
    return tail + (qemu_record() if device_model is None else device_model)


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a release's sender puts into an image."""

    sign_extended: bool = False
    vcpu_info: bool = True
    ext_info: bool = True
    extv: bool = True
    tsc: bool = True
    last_checkpoint: bool = True
    params: tuple[int, ...] = (12, 15, 17, 19)


RELEASES: Mapping[str, Release] = {
    "3.0": Release(
        sign_extended=True,
        vcpu_info=False,
        ext_info=False,
        extv=False,
        tsc=False,
        last_checkpoint=False,
        params=(),
    ),
    "3.1": Release(ext_info=False, extv=False, tsc=False, last_checkpoint=False, params=()),
    "3.2": Release(tsc=False, last_checkpoint=False, params=()),
    "3.4": Release(tsc=False, last_checkpoint=False, params=(12, 15)),
    "4.0": Release(last_checkpoint=False, params=(12, 15)),
    "4.1": Release(),
    "4.4": Release(),
}


@dataclass(frozen=True, kw_only=True)
class Image:
    """A whole image, and what it must decode to: the last copy of each page, by pfn."""

    wire: bytes
    memory: Mapping[int, bytes] = field(repr=False)
    ending: int  # offset of the first mark of the end


def _memory(rounds: Sequence[Sequence[Entry]], unmapped: Sequence[int] = ()) -> dict[int, bytes]:
    memory = {item.pfn: item.data for items in rounds for item in items if item.data}
    return {pfn: data for pfn, data in memory.items() if pfn not in unmapped}


def _body(
    rounds: Sequence[Sequence[Entry]], release: Release, width: int, batch_pages: int
) -> tuple[bytes, bytes]:
    """Return the batches before the suspend, and everything between it and VCPU_INFO."""

    def batches(items: Sequence[Entry]) -> bytes:
        return b"".join(
            batch(
                items[start : start + batch_pages],
                width=width,
                sign_extended=release.sign_extended,
            )
            for start in range(0, len(items), batch_pages)
        )

    tsc = tsc_info() if release.tsc else b""
    if len(rounds) == 1:
        return tsc + batches(rounds[0]), b""
    live = b"".join(batches(items) for items in rounds[:-1])
    return live, tsc + batches(rounds[-1])


def pv_image(
    rounds: Sequence[Sequence[Entry]] = (),
    *,
    release: str = "4.4",
    width: int = 8,
    guest_width: int = 8,
    p2m_size: int = 64,
    vcpus: Sequence[int] = (0,),
    highest_vcpu: int | None = None,
    unmapped: Sequence[int] = (),
    xcnt: int | None = None,
    shared_info: bytes = bytes(PAGE),
    batch_pages: int = 1024,
    before_end: bytes = b"",
) -> Image:
    """Return a PV image; one round is a non-live save, more are a live migration."""
    rounds = rounds or (entries(range(p2m_size)),)
    how = RELEASES[release]
    head = ul(width, p2m_size)
    if how.ext_info:
        head += ext_info(
            guest_width, width=width, context=context(0, guest_width), extv=how.extv, xcnt=xcnt
        )
    head += p2m_frames(p2m_size, guest_width, width=width)
    live, final = _body(rounds, how, width, batch_pages)
    highest = max(vcpus) if highest_vcpu is None else highest_vcpu
    info = vcpu_info(highest, vcpus) if how.vcpu_info else b""
    last = chunk(LAST_CHECKPOINT) if how.last_checkpoint else b""
    tail = pv_tail(
        vcpus,
        guest_width,
        width=width,
        unmapped=unmapped,
        extv=how.extv,
        xcnt=xcnt,
        shared_info=shared_info,
    )
    ending = len(head + live) + (0 if how.tsc and len(rounds) > 1 else len(final))
    wire = head + live + final + info + before_end + last + chunk(0) + tail
    return Image(wire=wire, memory=_memory(rounds, unmapped), ending=ending)


def hvm_image(
    rounds: Sequence[Sequence[Entry]] = (),
    *,
    release: str = "4.4",
    width: int = 8,
    p2m_size: int = 0x100000,
    vcpus: Sequence[int] = (0,),
    params: Mapping[int, int] | None = None,
    device_model: bytes | None = None,
    batch_pages: int = 1024,
    before_end: bytes = b"",
) -> Image:
    """Return a HVM image with xend's device-model record; rounds as for `pv_image`."""
    rounds = rounds or (entries(range(64)),)
    how = RELEASES[release]
    head = ul(width, p2m_size)
    live, final = _body(rounds, how, width, batch_pages)
    info = vcpu_info(max(vcpus), vcpus) if how.vcpu_info else b""
    values = params or {param: DEFAULT_PARAMS[param] for param in how.params}
    chunks = b"".join(hvm_value(PARAM_CHUNKS[param], value) for param, value in values.items())
    last = chunk(LAST_CHECKPOINT) if how.last_checkpoint else b""
    tail = hvm_tail(device_model=device_model)
    ending = len(head + live) + (0 if how.tsc and len(rounds) > 1 else len(final))
    wire = head + live + final + info + chunks + before_end + last + chunk(0) + tail
    return Image(wire=wire, memory=_memory(rounds), ending=ending)


def config(
    name: str = "web1",
    *,
    uuid: str = UUID,
    hvm: bool = False,
    memory: int = 1,
    vcpus: int = 1,
    extra: str = "",
) -> bytes:
    """Return a guest configuration in the style of 4.x; `extra` goes in before the devices."""
    image = (
        "(image (hvm (kernel '') (loader /usr/lib/xen/boot/hvmloader) (boot cd) (pae 1) (acpi 1)"
        " (apic 1) (device_model qemu-dm) (notes (SUSPEND_CANCEL 1))))"
        if hvm
        else "(image (linux (kernel /boot/vmlinuz-2.6.18-xen) (ramdisk '') (args 'ro')"
        " (notes (GUEST_OS linux) (SUSPEND_CANCEL 1))))"
    )
    return (
        f"(domain (domid 7) (uuid {uuid}) (bootloader '') (vcpus {vcpus}) (name {name})"
        " (on_poweroff destroy) (on_reboot restart) (on_crash restart)"
        f" (maxmem {memory}) (memory {memory}) (shadow_memory 0) (cpu_weight 256)"
        f" (start_time 1186574321.48) {image} (status 2) (state -b----) {extra}"
        " (device (vif (bridge xenbr0) (mac 00:16:3e:12:34:56) (backend 0))))"
    ).encode("ascii")


def envelope(config_bytes: bytes) -> bytes:
    """Return xend's envelope: signature, big-endian length, configuration."""
    return b"LinuxGuestRecord" + struct.pack(">i", len(config_bytes)) + config_bytes
