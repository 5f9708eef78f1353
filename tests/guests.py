"""Guests for driver tests: configurations, records, and the sending of both to a session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

import numpy as np

from tests.streams import config as config_sxp
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.guest.pages import PageBatch, PageType, Pfns
from xendpy.hypervisor.base import PageSource, RestoreSession
from xendpy.stream.records import (
    End,
    Ending,
    LastCheckpoint,
    OnlineVcpus,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    SharedInfo,
    StreamStart,
    TscInfo,
    UnmappedPfns,
    VcpuContext,
    VcpuContextKind,
)

UUID = "6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10"
OTHER_UUID = "00000000-0000-4000-8000-000000000002"
P2M_SIZE = 4096


def u64(*values: int) -> Pfns:
    return np.array(values, np.uint64)


def span(first: int, count: int) -> Pfns:
    return np.arange(first, first + count, dtype=np.uint64)


def guest(name: str = "web01", uuid: str = UUID, memory_mib: int = 16) -> DomainConfig:
    return DomainConfig.parse(config_sxp(name=name, uuid=uuid, memory=memory_mib))


def opening(p2m_size: int = P2M_SIZE) -> list[Record]:
    return [
        StreamStart(guest_type=GuestType.PV, format="libxc-v1", tool_width=8, p2m_size=p2m_size),
        PvInfo(guest_width=8, pt_levels=4, context=b"\1" * 5168, extended=True, xsave_bytes=1024),
        P2mFrames(0, p2m_size - 1, span(100, 8)),
    ]


def closing(unmapped: Iterable[int] = ()) -> list[Record]:
    return [
        TscInfo(mode=2, khz=2_600_123, nsec=1 << 40, incarnation=3),
        OnlineVcpus(1, (0, 1)),
        LastCheckpoint(),
        UnmappedPfns(u64(*unmapped)),
        VcpuContext(0, VcpuContextKind.BASIC, b"\2" * 5168),
        VcpuContext(0, VcpuContextKind.EXTENDED, b"\4" * 128),
        VcpuContext(0, VcpuContextKind.XSAVE, b"\3" * 1008, xfeature_mask=7),
        VcpuContext(1, VcpuContextKind.BASIC, b"\6" * 5168),
        VcpuContext(1, VcpuContextKind.EXTENDED, b"\7" * 128),
        VcpuContext(1, VcpuContextKind.XSAVE, b"\3" * 1008, xfeature_mask=7),
        SharedInfo(b"\5" * 4096),
    ]


def batch(pfns: Pfns, type: int = PageType.NOTAB) -> PageBatch:
    return PageBatch(pfns, np.full(len(pfns), type, np.uint8))


def send_pages(
    session: RestoreSession, pfns: Pfns, value: int, type: int = PageType.NOTAB
) -> None:
    """Send one batch whose every byte is `value`."""
    described = batch(pfns, type)
    views = session.populate(described)
    for view in views:
        np.frombuffer(view, np.uint8)[:] = value
    session.apply(Pages(described, views))


def send_all(session: RestoreSession, records: Iterable[Record]) -> None:
    for record in records:
        session.apply(record)


def send_guest(
    session: RestoreSession,
    pfns: Pfns,
    value: int = 1,
    unmapped: Sequence[int] = (),
    p2m_size: int = P2M_SIZE,
) -> None:
    """Send a whole image of one round."""
    send_all(session, opening(p2m_size))
    for start in range(0, len(pfns), 1024):
        send_pages(session, pfns[start : start + 1024], value)
    session.apply(Ending())
    send_all(session, [*closing(unmapped), End()])


def contents(source: PageSource) -> dict[int, tuple[int, int]]:
    """Return (type, value of the first byte, -1 without data) of every frame that exists."""
    found: dict[int, tuple[int, int]] = {}
    for pfns in source.present().batches():
        pages = source.read(pfns)
        data = b"".join(bytes(view) for view in pages.views)
        with_data = pages.batch.with_data().tolist()
        assert len(data) == 4096 * len(with_data)
        values = {pfn: data[index * 4096] for index, pfn in enumerate(with_data)}
        for pfn, kind in zip(pages.batch.pfns.tolist(), pages.batch.types.tolist(), strict=True):
            found[pfn] = (kind, values.get(pfn, -1))
    return found


def plain(records: Iterable[Record]) -> list[tuple[object, ...]]:
    """Return records as values that compare."""
    return [
        (type(record).__name__, *(_field(record, f.name) for f in fields(record)))
        for record in records
    ]


def _field(record: Record, name: str) -> object:
    value = getattr(record, name)
    return (value.dtype.str, *value.tolist()) if isinstance(value, np.ndarray) else value
