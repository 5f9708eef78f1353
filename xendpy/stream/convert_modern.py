"""Legacy records as those of v2 and libxl.

What the old formats leave to their receiver is settled here: the online flag and the page table
levels that 3.0.x does not send, libxl's physmap records.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from struct import Struct

import numpy as np

from xendpy.errors import RecordError, UnsupportedStream
from xendpy.guest.pages import PageType, Types
from xendpy.stream.legacy_format import LEVELS
from xendpy.stream.records import (
    EmulatorContext,
    EmulatorSignature,
    EmulatorXenstore,
    OnlineVcpus,
    Pages,
    PvInfo,
    Record,
    SharedInfo,
    StreamStart,
    Toolstack,
    UnmappedPfns,
    VcpuContext,
    VcpuContextKind,
    Verify,
)

# Offsets in vcpu_guest_context and shared_info (public/arch-x86/xen.h), by guest width.
FLAGS = 512
VGCF_ONLINE = 1 << 5
CR1 = 4992  # 64-bit guests alone
CR3 = 2728  # 32-bit guests: the frame number folded, (pfn << 12) | (pfn >> 20)
FRAME_LIST_LIST = {8: 3096, 4: 2320}

TOOLSTACK_HEADER = Struct("<II")  # version, count
TOOLSTACK_VERSION = 1
PHYSMAP = Struct("<QQQI")  # physical offset, start, size, length of the name with its NUL
NAME_PADDING = {8: 4, 4: 0}  # 64-bit libxl writes that many bytes of junk behind a name


class LegacyToModern:
    """Translates one stream, record by record."""

    def __init__(self, *, keeps_unmapped: bool) -> None:
        self._keeps_unmapped = keeps_unmapped
        self._tool_width = 8
        self._info = PvInfo(guest_width=8, pt_levels=4)
        self._has_online_vcpus = False
        self._types: Types | None = None  # of every pfn, where the levels are not signalled
        self._xenstore = b""

    def translate(self, record: Record) -> Iterator[Record]:
        """Yield what `record` is in v2, which may be nothing."""
        match record:
            case StreamStart():
                self._tool_width = record.tool_width
                yield record
            case PvInfo():
                yield self._pv_info(record)
            case Pages():
                self._note_types(record)
                yield record
            case OnlineVcpus():
                self._has_online_vcpus = True
            case VcpuContext(kind=VcpuContextKind.BASIC) if not self._has_online_vcpus:
                yield self._complete_context(record)
            case SharedInfo():
                yield self._shared_info(record)
            case UnmappedPfns() if not self._keeps_unmapped:
                pass
            case Toolstack():
                self._xenstore = physmap_keys(record.blob, self._tool_width)
            case EmulatorContext():
                yield from self._emulator_xenstore()
                yield replace(record, signature=EmulatorSignature.V2)
            case Verify():
                pass  # the pages that follow are sent again: they do no harm
            case _:
                yield record

    def _pv_info(self, record: PvInfo) -> PvInfo:
        if not record.pt_levels:
            # Only 32-bit guests of 3.0.x and 3.1: PAE, which v2 can carry, or not.
            self._types = np.zeros(0, np.uint8)
            record = replace(record, pt_levels=LEVELS[record.guest_width])
        self._info = record
        return record

    def _shared_info(self, record: SharedInfo) -> SharedInfo:
        """Zero the frame list's frame number, a source mfn that senders before 3.1 leave."""
        width = self._info.guest_width
        at = FRAME_LIST_LIST[width]
        return SharedInfo(record.page[:at] + bytes(width) + record.page[at + width :])

    def _note_types(self, record: Pages) -> None:
        if self._types is None or not len(record.batch):
            return
        missing = int(record.batch.pfns.max()) + 1 - len(self._types)
        if missing > 0:
            more = np.zeros(max(missing, len(self._types)), np.uint8)
            self._types = np.concatenate((self._types, more))
        self._types[record.batch.pfns] = record.batch.types

    def _complete_context(self, record: VcpuContext) -> VcpuContext:
        """Do what a receiver must when there was no VCPU_INFO: 3.0.x."""
        blob = bytearray(record.blob)
        blob[FLAGS] |= VGCF_ONLINE
        if self._info.guest_width == 8:
            blob[CR1 : CR1 + 8] = bytes(8)  # neither filled nor canonicalised by the sender
        if self._types is not None:
            self._require_pae(int.from_bytes(blob[CR3 : CR3 + 4], "little"), self._types)
        return replace(record, blob=bytes(blob))

    def _require_pae(self, cr3: int, types: Types) -> None:
        pfn = cr3 >> 12 | (cr3 & 0xFFF) << 20
        if pfn < len(types) and types[pfn] & 0x7 == PageType.L2TAB:
            raise UnsupportedStream("a 32-bit guest without PAE in a libxc image")

    def _emulator_xenstore(self) -> Iterator[Record]:
        if self._xenstore:
            yield EmulatorXenstore(0, 0, self._xenstore)
            self._xenstore = b""


def physmap_keys(blob: bytes, tool_width: int) -> bytes:
    """Return libxl's physmap entries of a TOOLSTACK chunk as the device model's xenstore keys.

    Raises:
        RecordError: it is not of version 1, or too short for what it announces.
    """
    if len(blob) < TOOLSTACK_HEADER.size:
        raise RecordError("TOOLSTACK", f"{len(blob)} bytes, expected 8 or more")
    version, count = TOOLSTACK_HEADER.unpack_from(blob)
    if version != TOOLSTACK_VERSION:
        raise RecordError("TOOLSTACK", f"version {version}, expected {TOOLSTACK_VERSION}")
    position, strings = TOOLSTACK_HEADER.size, []
    for index in range(count):
        if len(blob) - position < PHYSMAP.size:
            raise RecordError("TOOLSTACK", f"entry {index} of {count} is cut off")
        physical, start, size, length = PHYSMAP.unpack_from(blob, position)
        position += PHYSMAP.size
        name = blob[position : position + length]
        position += length + NAME_PADDING[tool_width]
        if position > len(blob) or not name or name.index(b"\0") != length - 1:
            raise RecordError("TOOLSTACK", f"entry {index} of {count} has no whole name")
        root = b"physmap/%x/" % physical
        strings += [root + b"start_addr", b"%x" % start, root + b"size", b"%x" % size]
        strings += [root + b"name", name[:-1]]
    return b"".join(string + b"\0" for string in strings)
