"""Encode records as a legacy libxc image, in the dialect of one release of Xen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from xendpy.errors import UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import PAGE_SIZE
from xendpy.stream.legacy_dialect import SIGNATURE_SINCE, Dialect
from xendpy.stream.legacy_format import (
    CHUNK_OF_PARAM,
    CONTEXT_BYTES,
    EXT_BLOCK,
    EXTENDED_BYTES,
    HVM_VALUE,
    MAGIC_PARAMS,
    MAGIC_PFNS,
    MARKER,
    MAX_VCPU_ID,
    TSC_INFO,
    U32,
    UL,
    UL_DTYPE,
    XSAVE_HEADER,
    Chunk,
    HvmParam,
    p2m_frame_count,
)
from xendpy.stream.legacy_pages import encode_pages
from xendpy.stream.order import LEGACY, LEGACY_ONCE, RecordOrder
from xendpy.stream.records import (
    Checkpoint,
    CpuidPolicy,
    EmulatorContext,
    EmulatorSignature,
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
    VcpuContextKind,
    Verify,
)

Wire: TypeAlias = Iterator[bytes | memoryview]

# Say nothing in this format. LAST_CHECKPOINT is written whenever the dialect has it.
SILENT = (Ending, LastCheckpoint, StaticDataEnd)
NOT_CARRIED: Mapping[type[Record], str] = {
    EmulatorXenstore: "the device model's xenstore data",
    CpuidPolicy: "a CPUID policy",
    MsrPolicy: "a MSR policy",
    Checkpoint: "a checkpoint",
}
VM_ASSIST = {8: 5136, 4: 2796}  # offset in vcpu_guest_context, by guest width
PAE_EXTENDED_CR3 = 1 << 3


class LegacyEncoder:
    """Writes one image; records must come in the legacy order.

    The pieces that `encode` yields must be sent before the next record is asked for: pages are
    the views of the record, not copies. What a receiver of the dialect could not take raises
    UnsupportedStream with its name. `tool_width`: of the receiver's tools, 4 or 8 bytes.
    """

    def __init__(self, dialect: Dialect, guest_type: GuestType, tool_width: int = 8) -> None:
        if guest_type is GuestType.HVM and not dialect.hvm:
            raise UnsupportedStream(f"a HVM guest in a stream for Xen {dialect.release}")
        self._dialect = dialect
        self._guest_type = guest_type
        self._width = tool_width
        self._sender_width = tool_width
        self._order = RecordOrder(LEGACY[guest_type], LEGACY_ONCE)
        self._p2m_size = 0
        self._info: PvInfo | None = None
        self._vcpu_ids: tuple[int, ...] = (0,)
        self._params: dict[int, int] = {}
        self._magic: dict[int, int] = {}
        self._toolstack: bytes | None = None
        self._in_body = True
        self._due: list[tuple[int, VcpuContextKind]] = []
        self._encoders = self._table()

    def _table(self) -> Mapping[type[Record], Callable[[Any], Wire]]:
        return {
            StreamStart: self._stream_start,
            PvInfo: self._pv_info,
            P2mFrames: self._p2m_frames,
            Pages: lambda pages: encode_pages(pages, self._dialect, self._width),
            Verify: lambda _: iter((MARKER.pack(Chunk.ENABLE_VERIFY_MODE),)),
            TscInfo: self._tsc_info,
            OnlineVcpus: self._online_vcpus,
            HvmParams: self._hvm_params,
            Toolstack: self._keep_toolstack,
            UnmappedPfns: self._unmapped,
            VcpuContext: self._vcpu_context,
            SharedInfo: self._shared_info,
            HvmContext: self._hvm_context,
            EmulatorContext: self._emulator,
            End: lambda _: iter(()),
        }

    def encode(self, record: Record) -> Wire:
        """Yield the bytes of one record, which may be none.

        Raises:
            UnsupportedStream: the dialect, or the format, cannot carry it.
        """
        if isinstance(record, SILENT):
            return
        if type(record) in NOT_CARRIED:
            raise UnsupportedStream(f"{NOT_CARRIED[type(record)]} in a legacy stream")
        if isinstance(record, End) and self._order.state == "the HVM context":
            raise UnsupportedStream("a HVM guest without device-model state in a legacy stream")
        self._order.encoding(type(record))
        yield from self._encoders[type(record)](record)

    def _refuse(self, what: str, hint: str = "") -> UnsupportedStream:
        return UnsupportedStream(f"{what} in a stream for Xen {self._dialect.release}{hint}")

    def _chunk(self, chunk: Chunk) -> bytes:
        if not self._dialect.knows(chunk):
            raise self._refuse(chunk.name)
        return MARKER.pack(chunk)

    def _stream_start(self, record: StreamStart) -> Wire:
        assert record.guest_type is self._guest_type
        assert record.p2m_size > 0
        if record.p2m_size > self._dialect.max_p2m_size:
            raise self._refuse(f"a guest of {record.p2m_size:#x} pages")
        self._p2m_size = record.p2m_size
        self._sender_width = record.tool_width
        yield UL[self._width].pack(record.p2m_size)

    def _pv_info(self, record: PvInfo) -> Wire:
        width = record.guest_width
        if width != self._width and not self._dialect.mixed_widths:
            what = f"a {8 * width}-bit guest of {8 * self._width}-bit tools"
            raise self._refuse(what, self._hint() if width == 4 else "")
        if record.extended and not self._dialect.extended:
            raise self._refuse("the extended vcpu context")
        if record.xsave_bytes is not None and not self._dialect.xsave:
            raise self._refuse("xsave state")
        self._info = record
        context = record.context or bytes(CONTEXT_BYTES[width])
        assert len(context) == CONTEXT_BYTES[width]
        if not self._has_ext_info(record, context):
            return
        blocks = [_ext_block(b"vcpu", context)]
        if record.extended:
            blocks.append(_ext_block(b"extv", b""))
        if record.xsave_bytes is not None:
            blocks.append(_ext_block(b"xcnt", U32.pack(record.xsave_bytes)))
        body = b"".join(blocks)
        yield UL[self._width].pack((1 << 8 * self._width) - 1) + U32.pack(len(body)) + body

    def _hint(self) -> str:
        came = ", as its sender was" if self._sender_width == 4 else ""
        return f" (tools 32 is for receivers of 32 bits{came})"

    def _has_ext_info(self, record: PvInfo, context: bytes) -> bool:
        if self._dialect.always_ext_info:
            # Without it a receiver takes the guest to be as wide as the tools.
            return record.has_ext_info or record.guest_width != self._width
        assist = U32.unpack_from(context, VM_ASSIST[record.guest_width])[0]
        return record.guest_width == 4 and bool(assist & PAE_EXTENDED_CR3)

    def _p2m_frames(self, record: P2mFrames) -> Wire:
        assert self._info is not None
        assert (record.first_pfn, record.last_pfn) == (0, self._p2m_size - 1)
        assert len(record.frames) == p2m_frame_count(self._p2m_size, self._info.guest_width)
        yield record.frames.astype(UL_DTYPE[self._width]).tobytes()

    def _tsc_info(self, record: TscInfo) -> Wire:
        yield self._chunk(Chunk.TSC_INFO) + TSC_INFO.pack(
            record.mode, record.nsec, record.khz, record.incarnation
        )

    def _online_vcpus(self, record: OnlineVcpus) -> Wire:
        if max(record.ids) > self._dialect.max_vcpu_id or (
            record.max_vcpu_id > self._dialect.max_vcpu_id and self._dialect.knows(Chunk.VCPU_INFO)
        ):
            raise self._refuse(f"vcpu {max(record.max_vcpu_id, *record.ids)}")
        self._vcpu_ids = record.ids
        if self._dialect.knows(Chunk.VCPU_INFO):
            online = sum(1 << vcpu for vcpu in record.ids)
            words = online.to_bytes((record.max_vcpu_id // 64 + 1) * 8, "little")
            yield self._chunk(Chunk.VCPU_INFO) + MAX_VCPU_ID.pack(record.max_vcpu_id) + words

    def _hvm_params(self, record: HvmParams) -> Wire:
        for index, value in record.params:
            if index in MAGIC_PARAMS:
                self._magic[index] = value
            elif index in CHUNK_OF_PARAM and self._dialect.knows(CHUNK_OF_PARAM[index]):
                self._params[index] = value
            elif index != HvmParam.PAE_ENABLED:  # the configuration says it
                raise self._refuse(f"HVM parameter {index}")
        return iter(())

    def _keep_toolstack(self, record: Toolstack) -> Wire:
        if not self._dialect.knows(Chunk.TOOLSTACK):
            raise self._refuse(Chunk.TOOLSTACK.name)
        if self._width < self._sender_width:  # its structures are those of the tools
            raise self._refuse(f"{Chunk.TOOLSTACK.name} of {8 * self._sender_width}-bit tools")
        self._toolstack = record.blob
        return iter(())

    def _end_body(self) -> Wire:
        """Yield the chunks that stand last in a body, in the order of Xen's sender."""
        self._in_body = False
        for index, value in self._params.items():
            yield self._chunk(CHUNK_OF_PARAM[index]) + HVM_VALUE.pack(0, value)
        if self._toolstack is not None:
            size = U32.pack(len(self._toolstack))
            yield self._chunk(Chunk.TOOLSTACK) + size + self._toolstack
        if self._dialect.knows(Chunk.LAST_CHECKPOINT):
            yield self._chunk(Chunk.LAST_CHECKPOINT)
        yield MARKER.pack(Chunk.END)

    def _unmapped(self, record: UnmappedPfns) -> Wire:
        assert self._info is not None
        yield from self._end_body()
        yield U32.pack(len(record.pfns)) + record.pfns.astype(UL_DTYPE[self._width]).tobytes()
        kinds = [VcpuContextKind.BASIC]
        if self._info.extended:
            kinds.append(VcpuContextKind.EXTENDED)
        if self._info.xsave_bytes is not None:
            kinds.append(VcpuContextKind.XSAVE)
        self._due = [(vcpu, kind) for vcpu in sorted(self._vcpu_ids) for kind in kinds]

    def _vcpu_context(self, record: VcpuContext) -> Wire:
        assert self._info is not None
        if record.kind is VcpuContextKind.MSRS:
            raise UnsupportedStream("a vcpu's MSRs in a legacy stream")
        wanted = self._due.pop(0) if self._due else None
        assert (record.vcpu_id, record.kind) == wanted, f"expected the context {wanted}"
        match record.kind:
            case VcpuContextKind.BASIC:
                assert len(record.blob) == CONTEXT_BYTES[self._info.guest_width]
                yield record.blob
            case VcpuContextKind.EXTENDED:
                assert len(record.blob) <= EXTENDED_BYTES
                yield record.blob.ljust(EXTENDED_BYTES, b"\0")
            case VcpuContextKind.XSAVE:
                assert len(record.blob) + XSAVE_HEADER.size == self._info.xsave_bytes
                yield XSAVE_HEADER.pack(record.xfeature_mask, len(record.blob)) + record.blob

    def _shared_info(self, record: SharedInfo) -> Wire:
        assert not self._due, f"the context {self._due[0]} is missing"
        assert len(record.page) == PAGE_SIZE
        yield record.page

    def _hvm_context(self, record: HvmContext) -> Wire:
        yield from self._end_body()
        yield MAGIC_PFNS.pack(*(self._magic.get(param, 0) for param in MAGIC_PARAMS))
        yield U32.pack(len(record.blob)) + record.blob

    def _emulator(self, record: EmulatorContext) -> Wire:
        signature = record.signature
        if SIGNATURE_SINCE.get(signature, (9, 0)) > self._dialect.version:
            signature = EmulatorSignature.XEND
        yield signature.encode("ascii")
        if signature is not EmulatorSignature.XEND:
            yield U32.pack(len(record.blob))
        yield record.blob


def _ext_block(name: bytes, data: bytes) -> bytes:
    return EXT_BLOCK.pack(name, len(data)) + data
