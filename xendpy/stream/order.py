"""Which record may follow which, per format and guest type.

Decoding, a breach is the peer's fault (`RecordOrderError`); encoding, it is ours
(`AssertionError`). The tables hold what a codec lets through, not what a sender usually does:
Xen's own receivers take body chunks in any order before the end marker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from xendpy.errors import RecordOrderError
from xendpy.guest.domain import GuestType
from xendpy.stream.records import (
    CpuidPolicy,
    EmulatorContext,
    EmulatorXenstore,
    End,
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

RecordType: TypeAlias = type[Record]
Table: TypeAlias = Mapping[str, Mapping[RecordType, str]]

START = "the start"
MEMORY = "memory"

# xc_domain_save.c / xc_domain_restore.c, Xen 3.0.3 - 4.5
LEGACY: Mapping[GuestType, Table] = {
    GuestType.PV: {
        START: {StreamStart: "the header"},
        "the header": {PvInfo: "the extended info"},
        "the extended info": {P2mFrames: MEMORY},
        MEMORY: {
            Pages: MEMORY,
            Verify: MEMORY,
            TscInfo: MEMORY,
            OnlineVcpus: MEMORY,
            LastCheckpoint: MEMORY,
            UnmappedPfns: "the unmapped pfns",
            VcpuContext: "the vcpu contexts",
        },
        "the unmapped pfns": {VcpuContext: "the vcpu contexts"},
        "the vcpu contexts": {
            VcpuContext: "the vcpu contexts",
            SharedInfo: "the shared info",
        },
        "the shared info": {End: "the end"},
        "the end": {},
    },
    GuestType.HVM: {
        START: {StreamStart: MEMORY},
        MEMORY: {
            Pages: MEMORY,
            Verify: MEMORY,
            TscInfo: MEMORY,
            OnlineVcpus: MEMORY,
            HvmParams: MEMORY,
            Toolstack: MEMORY,
            LastCheckpoint: MEMORY,
            HvmContext: "the HVM context",
        },
        "the HVM context": {EmulatorContext: "the device model"},
        "the device model": {End: "the end"},
        "the end": {},
    },
}
LEGACY_ONCE: frozenset[RecordType] = frozenset({Verify, OnlineVcpus, Toolstack, LastCheckpoint})

# xg_sr_restore.c and libxl_stream_read.c, Xen 4.6 and later. What comes after the memory is
# applied at the end, so that any order and repetition will do; UnmappedPfns is only written.
LIBXC: Mapping[GuestType, Table] = {
    GuestType.PV: {
        START: {StreamStart: "the headers"},
        "the headers": {
            PvInfo: "the PV info",
            CpuidPolicy: "the headers",
            MsrPolicy: "the headers",
        },
        "the PV info": {
            CpuidPolicy: "the PV info",
            MsrPolicy: "the PV info",
            StaticDataEnd: "the static data",
        },
        "the static data": {P2mFrames: MEMORY, TscInfo: "the static data"},
        MEMORY: {
            P2mFrames: MEMORY,
            Pages: MEMORY,
            Verify: MEMORY,
            TscInfo: MEMORY,
            SharedInfo: MEMORY,
            VcpuContext: MEMORY,
            UnmappedPfns: MEMORY,
            End: "the end",
        },
        "the end": {},
    },
    GuestType.HVM: {
        START: {StreamStart: "the headers"},
        "the headers": {
            CpuidPolicy: "the headers",
            MsrPolicy: "the headers",
            StaticDataEnd: MEMORY,
        },
        MEMORY: {
            Pages: MEMORY,
            Verify: MEMORY,
            TscInfo: MEMORY,
            HvmParams: MEMORY,
            HvmContext: MEMORY,
            EmulatorXenstore: "the device model",
            EmulatorContext: "the device model",
            End: "the end",
        },
        "the device model": {
            EmulatorXenstore: "the device model",
            EmulatorContext: "the device model",
            End: "the end",
        },
        "the end": {},
    },
}
LIBXC_ONCE: frozenset[RecordType] = frozenset({PvInfo, StaticDataEnd})


class RecordOrder:
    """Where a stream is, by the records that have gone through."""

    def __init__(self, table: Table, once: frozenset[RecordType] = frozenset()) -> None:
        self._table = table
        self._once = once
        self._seen: set[RecordType] = set()
        self.state = START

    def decoding(self, kind: RecordType, offset: int | None = None) -> None:
        """Go on to a record of `kind` that the wire has at `offset`.

        Raises:
            RecordOrderError: it must not come here, or not again.
        """
        self.expect(kind, offset)
        self._advance(kind)

    def expect(self, kind: RecordType, offset: int | None = None) -> None:
        """Check that a record of `kind` may come at `offset`, without going on to it.

        Raises:
            RecordOrderError: it must not.
        """
        if not self._allows(kind):
            names = [each.__name__ for each in self._table[self.state] if self._allows(each)]
            raise RecordOrderError(kind.__name__, state=self.state, allowed=names, offset=offset)

    def encoding(self, kind: RecordType) -> None:
        """Go on to a record of `kind` that is about to be written."""
        state = self.state
        if not self._advance(kind):
            raise AssertionError(f"{kind.__name__} must not be encoded after {state}")

    def _advance(self, kind: RecordType) -> bool:
        if not self._allows(kind):
            return False
        self._seen.add(kind)
        self.state = self._table[self.state][kind]
        return True

    def _allows(self, kind: RecordType) -> bool:
        spent = kind in self._once and kind in self._seen
        return kind in self._table[self.state] and not spent
