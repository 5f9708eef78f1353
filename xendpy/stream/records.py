"""What a migration consists of, neutral to format, direction and driver.

Names are those of Xen's libxc migration stream specification; the legacy stream's words are
mapped to them by its codec. Blobs are Xen's own structures and are never looked into here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TypeAlias

from xendpy.guest.domain import GuestType
from xendpy.guest.pages import PageBatch, Pfns


class VcpuContextKind(Enum):
    """Which part of a vcpu's state a blob is."""

    BASIC = "basic"  # vcpu_guest_context: 5168 bytes (64-bit guest) or 2800 (32-bit)
    EXTENDED = "extended"  # domctl ext_vcpucontext, 128 bytes in the legacy stream
    XSAVE = "xsave"  # getvcpuextstate buffer, without the legacy stream's 16-byte header
    MSRS = "msrs"  # v2 and later only


class EmulatorSignature(StrEnum):
    """How a device-model record was introduced in a legacy stream."""

    XEND = "QemuDeviceModelRecord"  # xend 3.1-4.4, libxl 4.0: runs to the end of the stream
    REMUS = "RemusDeviceModelState"  # Remus 4.0+: length-prefixed
    LIBXL = "DeviceModelRecord0002"  # libxl >= 4.1: length-prefixed
    V2 = ""  # a libxl v2 record


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStart:
    """The first record: what kind of stream this is.

    `p2m_size` is the highest pfn + 1 in a legacy stream, 0 where the format does not say.
    `tool_width` is 4 or 8: sizeof(long) of the sender's tools in a legacy stream, else 8.
    """

    guest_type: GuestType
    format: str
    tool_width: int
    p2m_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PvInfo:
    """Width and levels of a PV guest.

    `context` is vcpu 0's context as the legacy ext-info block carries it before the memory, not
    canonicalised (only its size and vm_assist matter); empty when there is none. `extended`:
    EXTENDED blobs follow; `xsave_bytes`: size of each vcpu's xsave block including its 16-byte
    header, None without. `levels` 0 = not signalled (3.0.x 32-bit streams without ext-info).
    """

    guest_width: int
    pt_levels: int
    context: bytes = b""
    extended: bool = False
    xsave_bytes: int | None = None
    has_ext_info: bool = True


@dataclass(frozen=True, slots=True)
class StaticDataEnd:
    """All that is known before memory has come. (v3; inferred in v2)"""


@dataclass(frozen=True, slots=True)
class P2mFrames:
    """The pfns, uint64[n], of the guest's own p2m pages, for pfns `first_pfn`..`last_pfn`."""

    first_pfn: int
    last_pfn: int
    frames: Pfns


@dataclass(frozen=True, slots=True)
class Pages:
    """A batch whose data sits in `views`: contiguous runs, in stream order.

    The views belong to the guest or its driver and are valid until its next call.
    """

    batch: PageBatch
    views: Sequence[memoryview]


@dataclass(frozen=True, slots=True)
class Verify:
    """The pages that follow were sent before: compare them, do not store them."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The first mark of the end: from here on an old sender may have let go of its guest.

    Yielded by the legacy decoder before the record that is that mark; never encoded.
    """


@dataclass(frozen=True, slots=True)
class OnlineVcpus:
    """Which vcpus have contexts in the tail; `max_vcpu_id` is the highest possible id."""

    max_vcpu_id: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TscInfo:
    """How the guest's time stamp counter must go on."""

    mode: int
    khz: int
    nsec: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class HvmParams:
    """HVM parameters, (index, value), as numbered by Xen's hvm/params.h; in stream order."""

    params: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class HvmContext:
    """The HVM context blob (hvm/save.h)."""

    blob: bytes


@dataclass(frozen=True, slots=True)
class UnmappedPfns:
    """Legacy tail: pfns, uint64[n], without a frame at the end, whatever came before."""

    pfns: Pfns


@dataclass(frozen=True, slots=True)
class VcpuContext:
    """One part of one vcpu's state; `xfeature_mask` is the legacy XSAVE header's first field."""

    vcpu_id: int
    kind: VcpuContextKind
    blob: bytes
    xfeature_mask: int = 0


@dataclass(frozen=True, slots=True)
class SharedInfo:
    """The shared info page, 4096 bytes."""

    page: bytes


@dataclass(frozen=True, slots=True)
class Toolstack:
    """libxl's record inside a legacy HVM stream (Xen >= 4.2)."""

    blob: bytes


@dataclass(frozen=True, slots=True)
class EmulatorXenstore:
    """libxl v2: the device model's xenstore keys."""

    emulator_id: int
    index: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class EmulatorContext:
    """The device model's state."""

    signature: EmulatorSignature
    blob: bytes
    emulator_id: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class CpuidPolicy:
    """v3: the guest's CPUID leaves, 24 bytes each."""

    blob: bytes


@dataclass(frozen=True, slots=True)
class MsrPolicy:
    """v3: the guest's MSR policy, 16 bytes an entry."""

    blob: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """v2: a Remus checkpoint; a plain migration refuses it."""


@dataclass(frozen=True, slots=True)
class LastCheckpoint:
    """Legacy: no further checkpoint follows (Xen >= 4.1); says nothing about the guest."""


@dataclass(frozen=True, slots=True)
class End:
    """The whole image has been said."""


Record: TypeAlias = (
    StreamStart
    | PvInfo
    | StaticDataEnd
    | P2mFrames
    | Pages
    | Verify
    | Ending
    | OnlineVcpus
    | TscInfo
    | HvmParams
    | HvmContext
    | UnmappedPfns
    | VcpuContext
    | SharedInfo
    | Toolstack
    | EmulatorXenstore
    | EmulatorContext
    | CpuidPolicy
    | MsrPolicy
    | Checkpoint
    | LastCheckpoint
    | End
)
