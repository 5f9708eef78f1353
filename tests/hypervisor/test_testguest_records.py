"""A test guest as Records, and in the legacy stream."""

import struct

import numpy as np
import pytest

from tests.peers.ticker import Box
from xendpy.guest.domain import GuestType
from xendpy.guest.memory import GuestMemory
from xendpy.guest.pages import PageBatch
from xendpy.hypervisor import testguest_layout as layout
from xendpy.hypervisor import testguest_records as guest_records
from xendpy.stream import legacy
from xendpy.stream.legacy_dialect import DIALECTS
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.records import (
    End,
    P2mFrames,
    Pages,
    PvInfo,
    SharedInfo,
    StreamStart,
    VcpuContext,
    VcpuContextKind,
)
from xendpy.stream.steps import Fill, Populate, Take, Tell


def test_records_are_those_of_a_64_bit_guest():
    box = Box("tick=1", vcpus=2)
    box.ticker.advance(1.0)
    start, info, frames = guest_records.opening(box.ram)
    assert isinstance(start, StreamStart) and start.p2m_size == 1024
    assert isinstance(info, PvInfo) and len(info.context) == 5168
    assert isinstance(frames, P2mFrames) and frames.frames.tolist() == [10, 11]
    assert (frames.first_pfn, frames.last_pfn) == (0, 1023)
    tail = list(guest_records.closing(box.ram))
    contexts = [record.blob for record in tail if isinstance(record, VcpuContext)]
    assert [len(blob) for blob in contexts] == [5168, 128, 5168, 128]
    first = contexts[0]
    assert struct.unpack_from("<Q", first, 616) == (layout.START_INFO_PFN,)  # rdx
    assert struct.unpack_from("<Q", first, 608) == (1,)  # rcx: ticks
    assert struct.unpack_from("<Q", first, 4832) == (layout.GDT_PFN,)
    assert struct.unpack_from("<Q", first, 4960) == (512,)
    assert struct.unpack_from("<Q", first, 4992) == (0,)  # cr1: no user page table
    assert struct.unpack_from("<Q", first, 5008) == (layout.L4_PFN << 12,)
    (page,) = (record.page for record in tail if isinstance(record, SharedInfo))
    assert len(page) == 4096
    assert struct.unpack_from("<QQ", page, 3088) == (1023, 0)  # max_pfn, frame list list
    assert page[2560:3072] == b"\xff" * 512
    assert isinstance(tail[-1], End)


def replaced(records, offset, value):
    """Return the records with 8 bytes of vcpu 0's context changed."""
    out = []
    for record in records:
        if isinstance(record, VcpuContext) and record.kind is VcpuContextKind.BASIC:
            blob = bytearray(record.blob)
            struct.pack_into("<Q", blob, offset, value)
            record = VcpuContext(record.vcpu_id, record.kind, bytes(blob))
        out.append(record)
    return out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda records: replaced(records, 616, 99), "rdx is 0x63"),
        (lambda records: replaced(records, 608, 7), "rcx is 0x7"),
        (lambda records: replaced(records, 5008, 0), "cr3 is 0x0"),
        (lambda records: [r for r in records if not isinstance(r, VcpuContext)], "vcpus \\[\\]"),
        (lambda records: [r for r in records if not isinstance(r, SharedInfo)], "no shared info"),
    ],
)
def test_records_of_another_guest_or_moment_are_refused(change, told):
    box = Box()
    records = list(guest_records.closing(box.ram))
    guest_records.require_records(box.ram, records)
    with pytest.raises(ValueError, match=told):
        guest_records.require_records(box.ram, change(records))


def decoded(wire):
    """Return the records of a legacy image, and its memory."""
    decoder = legacy.decode(wire[:8], GuestType.PV)
    memory = GuestMemory.anonymous("decoded")
    records, offset, answer = [], 8, None
    while True:
        try:
            step = decoder.send(answer)
        except StopIteration:
            assert offset == len(wire)
            return records, memory
        answer = None
        match step:
            case Take(count):
                answer, offset = wire[offset : offset + count], offset + count
            case Tell():
                answer = offset
            case Populate(batch):
                answer = memory.views(batch.with_data())
            case Fill(views):
                for view in views:
                    view[:] = wire[offset : offset + len(view)]
                    offset += len(view)
            case _:
                records.append(step)


@pytest.mark.parametrize("release", ["4.0", "4.1", "4.2", "4.4"])
def test_guest_travels_in_a_legacy_stream(release):
    box = Box("tick=1 dirty=40MB/s fill=random", vcpus=3)
    box.ticker.fill()
    box.ticker.advance(1.0)
    types = layout.Layout(1024).types()
    pfns = np.arange(1024, dtype=np.uint64)
    pages = Pages(PageBatch(pfns, types), [memoryview(box.ram.reshape(-1))])
    encoder = LegacyEncoder(DIALECTS[release], GuestType.PV)
    story = [*guest_records.opening(box.ram), pages, *guest_records.closing(box.ram)]
    wire = b"".join(bytes(piece) for record in story for piece in encoder.encode(record))
    records, memory = decoded(wire)
    assert np.array_equal(memory.pages[:1024], box.ram)
    guest_records.require_records(memory.pages[:1024], records)
    (batch,) = (record.batch for record in records if isinstance(record, Pages))
    assert np.array_equal(batch.types, types)
