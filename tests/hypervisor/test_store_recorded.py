"""Recorded relocations of real senders, taken into the store and read back."""

import hashlib

import pytest

from tests import recorded
from tests.bytes_source import BytesSource
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.receive import NoGuest, drive
from xendpy.paths import Paths
from xendpy.stream.records import EmulatorContext, End, HvmContext, SharedInfo
from xendpy.stream.xend import decode_body, read_envelope


def take_in(store: StoreHypervisor, wire: bytes):
    source = BytesSource(wire)
    config = DomainConfig.parse(drive(read_envelope(), source, NoGuest()).config_bytes)
    with store.restore(config) as session:
        drive(decode_body(config.guest_type), source, session)
        return session.complete(), session.report


def hashes(source) -> dict[int, str]:
    found = {}
    for pfns in source.present().batches():
        pages = source.read(pfns)
        data = b"".join(map(bytes, pages.views))
        for index, pfn in enumerate(pages.batch.with_data().tolist()):
            found[pfn] = hashlib.sha256(data[index * 4096 : (index + 1) * 4096]).hexdigest()
    return found


@pytest.mark.parametrize("name", recorded.RELOCATIONS)
def test_the_memory_at_rest_is_that_of_the_sender(tmp_path, name):
    wire, description = recorded.load(name)
    store = StoreHypervisor(Paths(tmp_path))
    domain, report = take_in(store, wire)
    assert report.rounds > 1 and report.differing_pages == 0
    store.close()
    store = StoreHypervisor(Paths(tmp_path))
    with store.save(store.find(domain.uuid)) as source:
        expected = {int(pfn, 0): value for pfn, value in description["page_sha256"].items()}
        assert hashes(source) == expected
        types = dict(zip(range(source.nr_pages), source._types.all().tolist(), strict=True))
        for pfn, table in description.get("page_tables", {}).items():
            assert types[int(pfn, 0)] == table["level"] | (8 if table["pinned"] else 0)
        tail = {type(record) for record in source.closing()}
        if source.config.guest_type is GuestType.HVM:
            assert {HvmContext, EmulatorContext, End} <= tail
        else:
            assert {SharedInfo, End} <= tail
        source.resume()
    store.close()


def test_a_24_mib_guest_with_frames_below_4_gib_takes_little_room(tmp_path):
    wire, _ = recorded.load(recorded.HVM)
    store = StoreHypervisor(Paths(tmp_path))
    domain, _ = take_in(store, wire)
    image = Paths(tmp_path).store_dir / domain.uuid / "memory"
    assert image.stat().st_size == 0xFF000 * 4096
    assert image.stat().st_blocks * 512 < 24 << 20
    store.close()
