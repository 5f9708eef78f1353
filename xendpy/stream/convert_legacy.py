"""Records of v2 and libxl as those of the legacy image.

The legacy head announces what v2 only shows at the end: vcpu 0's context, the size of the xsave
state, the number of pages. `Survey` collects it; `ModernToLegacy` then puts the tail together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from xendpy.errors import UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import PAGE_SIZE, POPULATED, PageBatch, Pfns
from xendpy.guest.staging import Staging
from xendpy.stream.legacy_dialect import Dialect
from xendpy.stream.legacy_format import EXTENDED_BYTES, XSAVE_HEADER
from xendpy.stream.records import (
    CpuidPolicy,
    EmulatorContext,
    End,
    HvmContext,
    HvmParams,
    MsrPolicy,
    OnlineVcpus,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    SharedInfo,
    StaticDataEnd,
    StreamStart,
    UnmappedPfns,
    VcpuContext,
    VcpuContextKind,
)

HVM_MIN_PAGES = 0x100000  # what xc_domain_save says of any HVM guest below 4 GiB


# xen_domctl_ext_vcpucontext behind vcpu and size: where 32-bit system calls of a 64-bit guest go.
CALLBACKS = slice(8, 30)
XSAVE_UNUSED = 16  # xcr0 and xcr0_accum, which is 0: no state follows


def is_unused(record: Record, dialect: Dialect) -> bool:
    """Say whether a vcpu's context is nothing that a receiver of that release could miss.

    Xen 4.6 and later always write the extended one, and where the CPU can, the xsave header.
    """
    match record:
        case VcpuContext(kind=VcpuContextKind.EXTENDED):
            return not dialect.extended and not any(record.blob[CALLBACKS])
        case VcpuContext(kind=VcpuContextKind.XSAVE):
            return not dialect.xsave and len(record.blob) <= XSAVE_UNUSED
    return False


def _no_frames() -> Pfns:
    return np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a legacy head needs to know of a stream before its first page.

    `context`: vcpu 0's, of which only vm_assist matters; empty means zeros. `xsave_bytes`: of
    every vcpu, with the legacy 16-byte header; None without. `p2m_frames`: PV alone.
    """

    guest_type: GuestType
    p2m_size: int
    context: bytes = b""
    has_extended: bool = False
    xsave_bytes: int | None = None
    p2m_frames: Pfns = field(default_factory=_no_frames)


class Survey:
    """A sink that looks at a whole stream, and keeps what the legacy head needs."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._staging = Staging()
        self._guest_type = GuestType.PV
        self._frames_per_page = PAGE_SIZE // 8
        self._frames = _no_frames()
        self._p2m_size = 0
        self._contexts: dict[int, bytes] = {}
        self._has_extended = False
        self._xsave: dict[int, int] = {}

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        """Return memory that nobody will look at."""
        return self._staging.view(batch)

    def apply(self, record: Record) -> None:
        """Note what matters of `record`."""
        if is_unused(record, self._dialect):
            return
        match record:
            case StreamStart():
                self._guest_type = record.guest_type
                if record.guest_type is GuestType.HVM:
                    self._p2m_size = HVM_MIN_PAGES
            case PvInfo():
                self._frames_per_page = PAGE_SIZE // record.guest_width
            case P2mFrames():
                self._merge(record)
            case Pages() if self._guest_type is GuestType.HVM and len(record.batch):
                self._p2m_size = max(self._p2m_size, int(record.batch.pfns.max()) + 1)
            case VcpuContext(kind=VcpuContextKind.BASIC):
                self._contexts[record.vcpu_id] = record.blob
            case VcpuContext(kind=VcpuContextKind.EXTENDED):
                self._has_extended = True
            case VcpuContext(kind=VcpuContextKind.XSAVE):
                self._xsave[record.vcpu_id] = len(record.blob) + XSAVE_HEADER.size

    def _merge(self, record: P2mFrames) -> None:
        """Take in a P2M_FRAMES record, of which later ones make the list grow."""
        at = record.first_pfn // self._frames_per_page
        merged = np.zeros(max(len(self._frames), at + len(record.frames)), np.uint64)
        merged[: len(self._frames)] = self._frames
        merged[at : at + len(record.frames)] = record.frames
        self._frames = merged
        self._p2m_size = max(self._p2m_size, record.last_pfn + 1)

    def facts(self) -> Facts:
        """Return what was found, after the whole stream.

        Raises:
            UnsupportedStream: vcpus differ in a way that one announcement cannot say.
        """
        sizes = set(self._xsave.values())
        if len(sizes) > 1 or (sizes and set(self._xsave) != set(self._contexts)):
            raise UnsupportedStream("xsave state that differs between vcpus in a legacy stream")
        return Facts(
            guest_type=self._guest_type,
            p2m_size=self._p2m_size,
            context=self._contexts[min(self._contexts)] if self._contexts else b"",
            has_extended=self._has_extended,
            xsave_bytes=sizes.pop() if sizes else None,
            p2m_frames=self._frames,
        )


class ModernToLegacy:
    """Translates one stream, record by record; the tail waits for the end."""

    def __init__(self, facts: Facts, dialect: Dialect, *, lossy: bool) -> None:
        self.notes: list[str] = []
        self._facts = facts
        self._dialect = dialect
        self._lossy = lossy
        self._present: NDArray[np.bool_] = np.zeros(facts.p2m_size, np.bool_)
        self._has_frames = False
        self._vcpus: dict[int, dict[VcpuContextKind, VcpuContext]] = {}
        self._shared_info: SharedInfo | None = None
        self._params: dict[int, int] = {}
        self._hvm_context: HvmContext | None = None

    def translate(self, record: Record) -> Iterator[Record]:
        """Yield what `record` is in a legacy stream, nothing yet or nothing at all."""
        if is_unused(record, self._dialect):
            return
        match record:
            case StreamStart():
                yield replace(record, p2m_size=self._facts.p2m_size)
            case PvInfo():
                yield self._pv_info(record)
            case P2mFrames():
                yield from self._p2m_frames()
            case Pages():
                self._note_present(record)
                yield record
            case CpuidPolicy() | MsrPolicy():
                self.notes.append(f"{type(record).__name__}: left out, a legacy stream has none")
            case VcpuContext():
                self._keep_vcpu(record)
            case SharedInfo():
                self._shared_info = record
            case HvmParams():
                self._params.update(record.params)
            case HvmContext():
                self._hvm_context = record
            case EmulatorContext() | End():
                yield from self._tail()
                yield record
            case StaticDataEnd():
                pass
            case _:  # Verify, TscInfo; the encoder refuses what is left
                yield record

    def _pv_info(self, record: PvInfo) -> PvInfo:
        return replace(
            record,
            context=self._facts.context,
            extended=self._facts.has_extended,
            xsave_bytes=self._facts.xsave_bytes,
        )

    def _p2m_frames(self) -> Iterator[Record]:
        if not self._has_frames:
            self._has_frames = True
            yield P2mFrames(0, self._facts.p2m_size - 1, self._facts.p2m_frames)

    def _note_present(self, record: Pages) -> None:
        pfns = record.batch.pfns
        if len(pfns) and int(pfns.max()) >= self._facts.p2m_size:
            what = f"pfn {int(pfns.max()):#x} of a guest of {self._facts.p2m_size:#x} pages"
            raise UnsupportedStream(f"{what} in a legacy stream")
        self._present[pfns] = POPULATED[record.batch.types]

    def _keep_vcpu(self, record: VcpuContext) -> None:
        if record.kind is not VcpuContextKind.MSRS:
            self._vcpus.setdefault(record.vcpu_id, {})[record.kind] = record
        elif self._lossy:
            self.notes.append(f"the MSRs of vcpu {record.vcpu_id} are left out")
        else:
            raise UnsupportedStream(
                f"the MSRs of vcpu {record.vcpu_id} in a legacy stream (--lossy leaves them out)"
            )

    def _tail(self) -> Iterator[Record]:
        if self._hvm_context is not None:
            yield HvmParams(tuple(self._params.items()))
            yield self._hvm_context
            self._hvm_context = None
        elif self._shared_info is not None:
            ids = tuple(sorted(self._vcpus))
            yield OnlineVcpus(ids[-1], ids)
            yield UnmappedPfns(np.flatnonzero(~self._present).astype(np.uint64))
            for vcpu_id in ids:
                yield from self._contexts(vcpu_id)
            yield self._shared_info

    def _contexts(self, vcpu_id: int) -> Iterator[Record]:
        """Yield one vcpu's contexts in the legacy order; a missing extended one is all zeros."""
        found = self._vcpus[vcpu_id]
        if VcpuContextKind.BASIC not in found:
            raise UnsupportedStream(f"vcpu {vcpu_id} without a context in a legacy stream")
        yield found[VcpuContextKind.BASIC]
        if self._facts.has_extended:
            nothing = vcpu_id.to_bytes(4, "little").ljust(EXTENDED_BYTES, b"\0")
            yield found.get(
                VcpuContextKind.EXTENDED, VcpuContext(vcpu_id, VcpuContextKind.EXTENDED, nothing)
            )
        if VcpuContextKind.XSAVE in found:
            yield found[VcpuContextKind.XSAVE]
