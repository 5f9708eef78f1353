"""The head of a legacy image: p2m_size, and for PV the extended info and the p2m frame list.

The first 8 bytes tell the width of the sender's tools: the upper half of a 64-bit p2m_size is
zero, whereas 32-bit tools have the next item there, which never is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from xendpy.errors import RecordError, UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.stream.legacy_format import (
    EXT_BLOCK,
    LEVELS,
    MARKER,
    U32,
    UL,
    UL_DTYPE,
    WIDTH_OF_CONTEXT,
    XSAVE_HEADER,
    p2m_frame_count,
)
from xendpy.stream.limits import StreamLimits
from xendpy.stream.order import RecordOrder
from xendpy.stream.records import P2mFrames, PvInfo, StreamStart
from xendpy.stream.steps import Steps, take, tell, unpack

FORMAT = "libxc-v1"
FIRST_BYTES = 8
IA64_VERSIONS = (1, 2, 3)  # xc_ia64_save_restore.h: where x86 has all ones or the first frame
IA64_MIN_PAGES = 4096  # of 16 KiB; a x86 guest of that size has its p2m well above pfn 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What the rest of the image depends on.

    `marker` is the body's first marker where it was among the bytes looked at (32-bit HVM).
    """

    guest_type: GuestType
    tool_width: int
    p2m_size: int
    pv: PvInfo | None
    marker: int | None


def read_head(
    first: bytes, guest_type: GuestType, limits: StreamLimits, order: RecordOrder
) -> Steps[Head]:
    """Read everything before the first chunk; `first` is the image's first 8 bytes, taken."""
    start = (yield from tell()) - len(first)
    width = 8 if first[4:FIRST_BYTES] == bytes(4) else 4
    (p2m_size,) = UL[width].unpack(first[:width])
    if not 0 < p2m_size <= limits.p2m_pages:
        reason = f"{p2m_size:#x} pages, expected 0x1 to {limits.p2m_pages:#x}"
        raise RecordError("p2m_size", reason, offset=start)
    order.decoding(StreamStart, start)
    yield StreamStart(guest_type=guest_type, format=FORMAT, tool_width=width, p2m_size=p2m_size)
    pv, marker = None, None
    if guest_type is GuestType.PV:
        pv = yield from _read_pv(first[width:], width, p2m_size, limits, order)
    elif width == 4:
        (marker,) = MARKER.unpack(first[width:])
    return Head(guest_type=guest_type, tool_width=width, p2m_size=p2m_size, pv=pv, marker=marker)


def _read_pv(
    ahead: bytes, width: int, p2m_size: int, limits: StreamLimits, order: RecordOrder
) -> Steps[PvInfo]:
    start = (yield from tell()) - len(ahead)
    word = ahead or (yield from take(width))
    (value,) = UL[width].unpack(word)
    if value == (1 << 8 * width) - 1:
        info = yield from _read_ext_info(start, limits)
        word = b""
    elif width == 8 and value in IA64_VERSIONS and p2m_size >= IA64_MIN_PAGES:
        raise UnsupportedStream("an ia64 image", offset=start, format=FORMAT)
    else:
        # Before 3.2 the guest has the width of the tools; 32-bit levels are not signalled.
        levels = LEVELS[8] if width == 8 else 0
        info = PvInfo(guest_width=width, pt_levels=levels, has_ext_info=False)
    order.decoding(PvInfo, start)
    yield info
    yield from _read_p2m_frames(word, info.guest_width, width, p2m_size, order)
    return info


def _read_ext_info(start: int, limits: StreamLimits) -> Steps[PvInfo]:
    (total,) = yield from unpack(U32)
    if total > limits.ext_info_bytes:
        reason = f"{total} bytes, expected at most {limits.ext_info_bytes}"
        raise RecordError("extended info", reason, offset=start)
    base = yield from tell()
    return _parse_ext_info((yield from take(total)), base, limits)


def _parse_ext_info(body: bytes, base: int, limits: StreamLimits) -> PvInfo:
    context, extended, xsave_bytes = b"", False, None
    for name, data, at in _ext_blocks(body, base):
        match name:
            case b"vcpu":
                context = _require_context(data, at)
            case b"extv":
                extended = True
            case b"xcnt":
                xsave_bytes = _xsave_bytes(data, at, limits)
            # other ids are skipped, as every release does
    if not context:
        raise RecordError("extended info", "no vcpu block, expected one", offset=base)
    width = WIDTH_OF_CONTEXT[len(context)]
    return PvInfo(
        guest_width=width,
        pt_levels=LEVELS[width],
        context=context,
        extended=extended,
        xsave_bytes=xsave_bytes,
    )


def _ext_blocks(body: bytes, base: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield (id, data, offset in the stream) of every block."""
    position = 0
    while position < len(body):
        at = base + position
        left = len(body) - position - EXT_BLOCK.size
        if left < 0:
            reason = f"{left + EXT_BLOCK.size} bytes are left over, expected a block or none"
            raise RecordError("extended info", reason, offset=at)
        name, size = EXT_BLOCK.unpack_from(body, position)
        if size > left:
            reason = f"{size} bytes, expected at most {left}"
            raise RecordError(f"extended info block {ascii(name)[1:]}", reason, offset=at)
        position += EXT_BLOCK.size
        yield name, body[position : position + size], at
        position += size


def _require_context(data: bytes, offset: int) -> bytes:
    if len(data) not in WIDTH_OF_CONTEXT:
        reason = f"{len(data)} bytes, expected 5168 or 2800"
        raise RecordError("extended info block vcpu", reason, offset=offset)
    return data


def _xsave_bytes(data: bytes, offset: int, limits: StreamLimits) -> int | None:
    if len(data) != U32.size:
        reason = f"{len(data)} bytes, expected {U32.size}"
        raise RecordError("extended info block xcnt", reason, offset=offset)
    size: int = U32.unpack(data)[0]
    if size and not XSAVE_HEADER.size <= size <= limits.xsave_bytes:
        reason = f"{size} bytes a vcpu, expected {XSAVE_HEADER.size} to {limits.xsave_bytes}"
        raise RecordError("extended info block xcnt", reason, offset=offset)
    return size or None


def _read_p2m_frames(
    ahead: bytes, guest_width: int, width: int, p2m_size: int, order: RecordOrder
) -> Steps[None]:
    start = (yield from tell()) - len(ahead)
    order.decoding(P2mFrames, start)
    count = p2m_frame_count(p2m_size, guest_width)
    rest = yield from take(count * width - len(ahead))
    frames = np.frombuffer(ahead + rest, UL_DTYPE[width]).astype(np.uint64)
    good = frames < p2m_size
    if not good.all():
        bad = int(np.argmin(good))
        reason = f"frame {bad} is pfn {int(frames[bad]):#x}, expected below {p2m_size:#x}"
        raise RecordError("p2m frame list", reason, offset=start + bad * width)
    yield P2mFrames(0, p2m_size - 1, frames)
