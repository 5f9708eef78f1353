"""Encode records as a libxc image v2 or v3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from xendpy.errors import UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import HAS_DATA, MAX_BATCH, PAGE_SIZE, PageType, Pfns, Types
from xendpy.stream.framing import RECORD_HEADER, frame
from xendpy.stream.libxc_format import (
    CONVERTED,
    DOMAIN_HEADER,
    HVM_PARAM,
    HVM_PARAMS,
    IDENT,
    IMAGE_HEADER,
    MARKER,
    P2M_FRAMES,
    PAGE_DATA,
    PAGE_SHIFT,
    PFN_MASK,
    PV_INFO,
    TSC_INFO,
    TYPE_OF_DOMAIN,
    TYPE_SHIFT,
    VALID_TYPES,
    VCPU_HEADER,
    VCPU_OF_KIND,
    VERSIONS,
    RecordType,
)
from xendpy.stream.order import LIBXC, LIBXC_ONCE, RecordOrder
from xendpy.stream.records import (
    Checkpoint,
    CpuidPolicy,
    EmulatorContext,
    EmulatorXenstore,
    End,
    Ending,
    HvmContext,
    HvmParams,
    LastCheckpoint,
    MsrPolicy,
    OnlineVcpus,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    SharedInfo,
    StaticDataEnd,
    StreamStart,
    Toolstack,
    TscInfo,
    UnmappedPfns,
    VcpuContext,
    Verify,
)

Wire: TypeAlias = Iterator[bytes | memoryview]

# Say nothing here: a vcpu is online if it has a context, and the stream ends where it ends.
SILENT = (Ending, LastCheckpoint, OnlineVcpus)
STATIC = (StreamStart, PvInfo, CpuidPolicy, MsrPolicy, StaticDataEnd)
NOT_CARRIED: Mapping[type[Record], str] = {
    Toolstack: "a legacy toolstack record in a libxc image",
    Checkpoint: "a checkpointed stream",
    EmulatorContext: "the device model's state in a bare libxc image",
    EmulatorXenstore: "the device model's xenstore data in a bare libxc image",
}


class LibxcEncoder:
    """Writes one image; send what `encode` yields before the next record is asked for.

    STATIC_DATA_END is written where it belongs whether or not its record comes. A list of
    unmapped pfns becomes page data of type XTAB.
    """

    def __init__(self, guest_type: GuestType, version: int = 3) -> None:
        assert version in VERSIONS
        self._guest_type = guest_type
        self._version = version
        self._has_static_data = False
        self.order = RecordOrder(LIBXC[guest_type], LIBXC_ONCE)

    def encode(self, record: Record) -> Wire:
        """Yield the bytes of one record, which may be none.

        Raises:
            UnsupportedStream: the format cannot carry it.
        """
        if isinstance(record, SILENT):
            return
        if type(record) in NOT_CARRIED:
            raise UnsupportedStream(NOT_CARRIED[type(record)])
        if not self._has_static_data and not isinstance(record, STATIC):
            yield from self._static_data_end()
        if isinstance(record, StaticDataEnd):
            yield from self._static_data_end()
            return
        self.order.encoding(type(record))
        yield from _ENCODERS[type(record)](self, record)

    def _static_data_end(self) -> Wire:
        self.order.encoding(StaticDataEnd)
        self._has_static_data = True
        if self._version >= 3:
            yield frame(RecordType.STATIC_DATA_END)

    def _stream_start(self, record: StreamStart) -> Wire:
        assert record.guest_type is self._guest_type
        kind = TYPE_OF_DOMAIN[record.guest_type]
        yield MARKER + IMAGE_HEADER.pack(IDENT, self._version, 0, 0, 0)
        yield DOMAIN_HEADER.pack(kind, PAGE_SHIFT, 0, *CONVERTED)

    def _policy(self, record: CpuidPolicy | MsrPolicy) -> Wire:
        is_cpuid = isinstance(record, CpuidPolicy)
        kind = RecordType.X86_CPUID_POLICY if is_cpuid else RecordType.X86_MSR_POLICY
        if self._version < 3:
            raise UnsupportedStream(f"{kind.name} in a libxc v2 image")
        yield frame(kind, record.blob)


def _pv_info(_: LibxcEncoder, record: PvInfo) -> Wire:
    body = PV_INFO.pack(record.guest_width, record.pt_levels, bytes(6))
    yield frame(RecordType.X86_PV_INFO, body)


def _p2m_frames(_: LibxcEncoder, record: P2mFrames) -> Wire:
    frames = record.frames.astype("<u8").tobytes()
    body = P2M_FRAMES.pack(record.first_pfn, record.last_pfn) + frames
    yield frame(RecordType.X86_PV_P2M_FRAMES, body)


def _pages(_: LibxcEncoder, record: Pages) -> Wire:
    if not len(record.batch):
        return
    data_bytes = sum(view.nbytes for view in record.views)
    count = np.count_nonzero(HAS_DATA[record.batch.types])
    assert data_bytes == PAGE_SIZE * int(count), "the views do not hold the batch's pages"
    yield _page_data(record.batch.pfns, record.batch.types, data_bytes)
    yield from record.views


def _unmapped(_: LibxcEncoder, record: UnmappedPfns) -> Wire:
    for start in range(0, len(record.pfns), MAX_BATCH):
        pfns = record.pfns[start : start + MAX_BATCH]
        yield _page_data(pfns, np.full(len(pfns), PageType.XTAB, np.uint8), 0)


def _page_data(pfns: Pfns, types: Types, data_bytes: int) -> bytes:
    if int(pfns.max()) > PFN_MASK:
        raise UnsupportedStream(f"pfn {int(pfns.max()):#x} in a libxc image")
    if not VALID_TYPES[types].all():
        raise UnsupportedStream("page type PINNED_NOTAB in a libxc image")
    entries = (pfns | (types.astype(np.uint64) << TYPE_SHIFT)).astype("<u8").tobytes()
    length = PAGE_DATA.size + len(entries) + data_bytes
    header = RECORD_HEADER.pack(RecordType.PAGE_DATA, length)
    return header + PAGE_DATA.pack(len(pfns), 0) + entries


def _tsc_info(_: LibxcEncoder, record: TscInfo) -> Wire:
    body = TSC_INFO.pack(record.mode, record.khz, record.nsec, record.incarnation, 0)
    yield frame(RecordType.X86_TSC_INFO, body)


def _shared_info(_: LibxcEncoder, record: SharedInfo) -> Wire:
    assert len(record.page) == PAGE_SIZE
    yield frame(RecordType.SHARED_INFO, record.page)


def _vcpu_context(_: LibxcEncoder, record: VcpuContext) -> Wire:
    yield frame(VCPU_OF_KIND[record.kind], VCPU_HEADER.pack(record.vcpu_id, 0) + record.blob)


def _hvm_params(_: LibxcEncoder, record: HvmParams) -> Wire:
    params = b"".join(HVM_PARAM.pack(index, value) for index, value in record.params)
    yield frame(RecordType.HVM_PARAMS, HVM_PARAMS.pack(len(record.params), 0) + params)


def _hvm_context(_: LibxcEncoder, record: HvmContext) -> Wire:
    yield frame(RecordType.HVM_CONTEXT, record.blob)


_ENCODERS: Mapping[type[Record], Callable[[LibxcEncoder, Any], Wire]] = {
    StreamStart: LibxcEncoder._stream_start,
    CpuidPolicy: LibxcEncoder._policy,
    MsrPolicy: LibxcEncoder._policy,
    PvInfo: _pv_info,
    P2mFrames: _p2m_frames,
    Pages: _pages,
    UnmappedPfns: _unmapped,
    Verify: lambda _, record: iter((frame(RecordType.VERIFY),)),
    TscInfo: _tsc_info,
    SharedInfo: _shared_info,
    VcpuContext: _vcpu_context,
    HvmParams: _hvm_params,
    HvmContext: _hvm_context,
    End: lambda _, record: iter((frame(RecordType.END),)),
}
