"""Decode the legacy libxc image ("v1"), Xen 3.0.3 to 4.5.

    head   p2m_size; PV: extended info, p2m frame list            legacy_head
    body   page batches and control chunks, each after a marker   here, legacy_pages
    tail   PV or HVM state, device model                          legacy_tail

Source: xc_domain_restore.c (xc_linux_restore.c and xc_hvm_restore.c before 3.4). The stream's
version is never asked for: everything that differs shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xendpy.errors import RecordError, RecordOrderError, UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.stream.legacy_format import (
    HVM_VALUE,
    MARKER,
    MAX_VCPU_ID,
    PARAM_OF_CHUNK,
    TSC_INFO,
    U32,
    UNSUPPORTED,
    Chunk,
)
from xendpy.stream.legacy_head import FORMAT, Head, read_head
from xendpy.stream.legacy_pages import read_batch
from xendpy.stream.legacy_tail import read_hvm_tail, read_pv_tail
from xendpy.stream.limits import DEFAULT_LIMITS, StreamLimits
from xendpy.stream.order import LEGACY, LEGACY_ONCE, RecordOrder
from xendpy.stream.records import (
    End,
    Ending,
    HvmParams,
    LastCheckpoint,
    OnlineVcpus,
    Pages,
    Toolstack,
    TscInfo,
    Verify,
)
from xendpy.stream.steps import Passed, Steps, take, tell, unpack

ENDING_CHUNKS = frozenset({Chunk.VCPU_INFO, Chunk.LAST_CHECKPOINT, Chunk.END, *PARAM_OF_CHUNK})
BITS = 64  # of a word of the online map


def decode(
    first: bytes, guest_type: GuestType, limits: StreamLimits = DEFAULT_LIMITS
) -> Steps[None]:
    """Decode an image whose first 8 bytes were already taken.

    Raises:
        RecordError: a chunk or field is malformed.
        RecordOrderError: a chunk that must not come here, or not in this kind of guest.
        UnsupportedStream: tmem, Remus compression, ia64.
    """
    order = RecordOrder(LEGACY[guest_type], LEGACY_ONCE)
    head = yield from read_head(first, guest_type, limits, order)
    body = _Body(head, limits, order)
    yield from _read_body(body)
    if guest_type is GuestType.PV:
        yield from read_pv_tail(head, body.vcpu_ids, order)
    else:
        yield from read_hvm_tail(limits, order)
    order.decoding(End)
    yield End()


@dataclass(slots=True)
class _Body:
    """What the body's chunks have said so far."""

    head: Head
    limits: StreamLimits
    order: RecordOrder
    vcpu_ids: tuple[int, ...] = (0,)  # without VCPU_INFO (3.0.x) the tail has vcpu 0 alone
    params: dict[int, int] = field(default_factory=dict)
    has_pages: bool = False
    is_ending: bool = False


def _read_body(body: _Body) -> Steps[None]:
    start = yield from tell()
    if body.head.marker is None:
        (marker,) = yield from unpack(MARKER)
    else:
        start, marker = start - MARKER.size, body.head.marker
    while marker != Chunk.END:
        if marker > 0:
            yield from _read_pages(body, marker, start)
        else:
            yield from _read_control(body, marker, start)
        start = yield from tell()
        (marker,) = yield from unpack(MARKER)
    yield from _mark_ending(body, Chunk.END)
    if body.params:
        yield HvmParams(tuple(body.params.items()))


def _read_pages(body: _Body, count: int, start: int) -> Steps[None]:
    body.order.decoding(Pages, start)
    pages = yield from read_batch(
        count, width=body.head.tool_width, p2m_size=body.head.p2m_size, start=start
    )
    body.has_pages = True
    yield Passed() if pages is None else pages


def _read_control(body: _Body, marker: int, start: int) -> Steps[None]:
    if marker in UNSUPPORTED:
        raise UnsupportedStream(UNSUPPORTED[marker], offset=start, format=FORMAT)
    try:
        chunk = Chunk(marker)
    except ValueError:
        reason = f"marker {marker}, expected 1 to 1024, 0, or -1 to -20"
        raise RecordError("chunk", reason, offset=start) from None
    yield from _mark_ending(body, chunk)
    match chunk:
        case Chunk.ENABLE_VERIFY_MODE:
            body.order.decoding(Verify, start)
            yield Verify()
        case Chunk.VCPU_INFO:
            yield from _read_vcpu_info(body, start)
        case Chunk.TSC_INFO:
            body.order.decoding(TscInfo, start)
            mode, nsec, khz, incarnation = yield from unpack(TSC_INFO)
            yield TscInfo(mode=mode, khz=khz, nsec=nsec, incarnation=incarnation)
        case Chunk.LAST_CHECKPOINT:
            body.order.decoding(LastCheckpoint, start)
            yield LastCheckpoint()
        case Chunk.TOOLSTACK:
            yield from _read_toolstack(body, start)
        case _:
            yield from _read_hvm_param(body, chunk, start)


def _mark_ending(body: _Body, chunk: Chunk) -> Steps[None]:
    """Say once that the end has begun: a live sender's TSC_INFO comes when it has suspended."""
    live_suspend = chunk is Chunk.TSC_INFO and body.has_pages
    if not body.is_ending and (live_suspend or chunk in ENDING_CHUNKS):
        body.is_ending = True
        yield Ending()


def _read_vcpu_info(body: _Body, start: int) -> Steps[None]:
    body.order.decoding(OnlineVcpus, start)
    (highest,) = yield from unpack(MAX_VCPU_ID)
    if not 0 <= highest <= body.limits.max_vcpu_id:
        reason = f"highest vcpu id {highest}, expected 0 to {body.limits.max_vcpu_id}"
        raise RecordError("VCPU_INFO", reason, offset=start)
    raw = yield from take((highest // BITS + 1) * BITS // 8)
    online = int.from_bytes(raw, "little")
    if not online or online.bit_length() > highest + 1:
        reason = f"online map {online:#x}, expected vcpus 0 to {highest}, one or more of them"
        raise RecordError("VCPU_INFO", reason, offset=start)
    body.vcpu_ids = tuple(vcpu for vcpu in range(highest + 1) if online >> vcpu & 1)
    yield OnlineVcpus(highest, body.vcpu_ids)


def _read_toolstack(body: _Body, start: int) -> Steps[None]:
    body.order.decoding(Toolstack, start)
    (size,) = yield from unpack(U32)
    if size > body.limits.toolstack_bytes:
        reason = f"{size} bytes, expected at most {body.limits.toolstack_bytes}"
        raise RecordError("TOOLSTACK", reason, offset=start)
    yield Toolstack((yield from take(size)))


def _read_hvm_param(body: _Body, chunk: Chunk, start: int) -> Steps[None]:
    param = PARAM_OF_CHUNK[chunk]
    body.order.decoding(HvmParams, start)
    if param in body.params:
        raise RecordOrderError(chunk.name, state=chunk.name, allowed=(), offset=start)
    _padding, value = yield from unpack(HVM_VALUE)
    body.params[int(param)] = value
