import os
import threading
from pathlib import Path

import pytest

from tests.guests import (
    OTHER_UUID,
    UUID,
    closing,
    contents,
    guest,
    opening,
    send_all,
    send_guest,
    send_pages,
    span,
    u64,
)
from tests.hypervisor.contract import DriverContract
from xendpy.errors import (
    DomainExists,
    DomainStateError,
    HypervisorError,
    HypervisorUnavailable,
    OutOfMemory,
    Unsupported,
)
from xendpy.guest.domain import DomainState
from xendpy.guest.pages import PageType
from xendpy.hypervisor.open import open_hypervisor
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.paths import Paths
from xendpy.stream.records import Checkpoint, End, Ending, Verify


@pytest.fixture
def paths(tmp_path):
    return Paths(tmp_path)


@pytest.fixture
def store(paths):
    store = StoreHypervisor(paths)
    yield store
    store.close()


def restore(store, config=None, pfns=None, migration_id="", **more):
    with store.restore(config or guest(), migration_id=migration_id) as session:
        send_guest(session, span(0, 64) if pfns is None else pfns, **more)
        return session.complete()


def files(store_dir: Path) -> set[str]:
    return {str(path.relative_to(store_dir)) for path in store_dir.rglob("*") if path.is_file()}


def whole(key: str) -> set[str]:
    return {f"{key}/{name}" for name in ("memory", "types", "records", "config.sxp", "state.json")}


def du(path: Path) -> int:
    """Return the pages that `path` occupies on disk."""
    return path.stat().st_blocks * 512 // 4096


class TestContract(DriverContract):
    @pytest.fixture
    def hypervisor(self, store):
        return store


def test_a_guest_is_the_same_after_a_restart(paths, store):
    domain = restore(store, pfns=u64(0, 5, 6, 900))
    (before,) = store.domains()
    host_id = store.host_id
    store.close()
    again = StoreHypervisor(paths)
    assert again.domains() == [before]
    assert again.host_id == host_id
    with again.save(again.find(str(domain.domid))) as source:
        assert contents(source) == dict.fromkeys((0, 5, 6, 900), (0, 1))
    assert restore(again, guest("other", OTHER_UUID)).domid > domain.domid
    again.close()


def test_the_configuration_is_kept_as_it_came(paths, store):
    restore(store)
    assert (paths.store_dir / UUID / "config.sxp").read_bytes() == guest().raw


def test_a_guest_at_rest_is_five_files_and_nothing_else_is_left(paths, store):
    restore(store)
    assert files(paths.store_dir) == whole(UUID)
    store.destroy(store.find("web01"))
    assert files(paths.store_dir) == set()


def test_a_guest_that_did_not_arrive_leaves_nothing(paths, store):
    with store.restore(guest()) as session:
        send_all(session, opening())
        send_pages(session, span(0, 100), 1)
    assert files(paths.store_dir) == set()
    assert store.incoming() == []


def test_an_incoming_guest_is_listed_apart(store):
    with store.restore(guest()):
        (summary,) = store.incoming()
        assert summary.name == "web01" and summary.state is DomainState.INCOMING
        assert store.domains() == []


def test_the_image_is_sparse_and_as_long_as_its_highest_frame(paths, store):
    restore(store, pfns=u64(0, 3000))
    image = paths.store_dir / UUID / "memory"
    assert image.stat().st_size == 3001 * 4096
    assert du(image) < 64


def test_zero_pages_are_counted_and_left_as_holes(paths, store):
    with store.restore(guest()) as session:
        send_all(session, opening())
        send_pages(session, span(0, 1024), 0)
        send_pages(session, span(1024, 64), 1)
        assert (session.report.pages, session.report.zero_pages) == (1088, 1024)
        send_all(session, [Ending(), *closing(), End()])
        domain = session.complete()
    assert du(paths.store_dir / UUID / "memory") <= 64 + 16
    with store.save(domain) as source:
        found = contents(source)
    assert found[5] == (0, 0) and found[1030] == (0, 1) and len(found) == 1088


def test_the_last_copy_of_a_frame_wins_with_its_type(store):
    with store.restore(guest()) as session:
        send_all(session, opening())
        send_pages(session, span(0, 10), 1)
        send_pages(session, u64(2, 4), 2, PageType.L1TAB_PIN)
        send_pages(session, u64(5), 0, PageType.XTAB)
        send_pages(session, u64(6), 0, PageType.XALLOC)
        send_pages(session, u64(2), 3, PageType.NOTAB)
        assert session.report.rounds == 3
        send_all(session, [Ending(), *closing(), End()])
        domain = session.complete()
    with store.save(domain) as source:
        found = contents(source)
        assert source.nr_pages == 10
    assert found[2] == (PageType.NOTAB, 3)
    assert found[4] == (PageType.L1TAB_PIN, 2)
    assert found[6] == (PageType.XALLOC, -1)
    assert 5 not in found and found[7] == (0, 1)


def test_unmapped_frames_are_removed_at_the_end(paths, store):
    domain = restore(store, pfns=span(0, 512), unmapped=[*range(100, 300), 4000])
    with store.save(domain) as source:
        assert sorted(contents(source)) == [*range(100), *range(300, 512)]
        (pages,) = [source.read(u64(150))]
        assert pages.batch.types.tolist() == [PageType.XTAB] and list(pages.views) == []
    image = paths.store_dir / UUID / "memory"
    assert not any(image.read_bytes()[100 * 4096 : 300 * 4096])
    assert du(image) <= 312 + 16


def test_verified_pages_are_compared_and_not_stored(store):
    with store.restore(guest()) as session:
        send_all(session, opening())
        send_pages(session, span(0, 20), 1)
        session.apply(Verify())
        send_pages(session, span(0, 10), 1)
        send_pages(session, u64(12, 10, 3000), 9)
        report = session.report
        assert (report.verified_pages, report.differing_pages) == (13, 3)
        assert report.differing_pfns == (12, 10, 3000)
        send_all(session, [Ending(), *closing(), End()])
        domain = session.complete()
    with store.save(domain) as source:
        assert contents(source) == dict.fromkeys(range(20), (0, 1))


def test_a_record_the_store_cannot_use_is_refused_by_name(store):
    class Unheard:
        pass

    with store.restore(guest()) as session:
        with pytest.raises(HypervisorError, match="Unheard"):
            session.apply(Unheard())
        session.apply(Checkpoint())


def test_a_kept_guest_is_partial_inspectable_and_never_live(paths, store):
    with store.restore(guest()) as session:
        send_all(session, opening())
        send_pages(session, span(0, 10), 1)
        send_pages(session, u64(3), 2)
        where = session.keep("the connection broke")
        with session.rest() as file:
            file.write(b"what nobody decoded")
    directory = paths.store_dir / "partial" / "web01.partial"
    assert where == str(directory)
    assert (directory / "rest").read_bytes() == b"what nobody decoded"
    assert (directory / "memory").read_bytes()[3 * 4096] == 2
    store.close()
    again = StoreHypervisor(paths)
    assert again.domains() == []
    (partial,) = again.partials()
    assert (partial.label, partial.uuid, partial.reason) == (
        "web01.partial",
        UUID,
        "the connection broke",
    )
    assert (partial.rounds, partial.pages) == (2, 11)
    restore(again)  # its name and uuid are free
    again.discard_partial("web01.partial")
    assert files(paths.store_dir) == whole(UUID)
    again.close()


def test_only_the_newest_partial_guests_are_kept(paths):
    store = StoreHypervisor(paths, max_partials=2)
    for count in range(4):
        with store.restore(guest()) as session:
            send_all(session, opening())
            session.keep(f"attempt {count}")
    assert [partial.reason for partial in store.partials()] == ["attempt 2", "attempt 3"]
    store.close()


def test_a_long_name_can_still_be_kept(store):
    with store.restore(guest("x" * 300)) as session:
        session.keep("cut")
    assert store.partials()[0].label == "x" * 200 + ".partial"


def test_a_localhost_migration_keeps_both_until_the_source_goes(paths, store):
    source_domain = restore(store)
    with store.save(source_domain, migration_id="ab12") as source:
        arrived = restore(store, migration_id="ab12")
        assert [summary.uuid for summary in store.domains()] == [UUID, UUID]
        assert arrived.domid != source_domain.domid
        assert store.arrival("ab12") == arrived and store.arrival("cd34") is None
        list(source.closing())
        source.relinquish()
    assert store.find("web01") == arrived
    store.close()
    again = StoreHypervisor(paths)
    assert again.find("web01") == arrived == again.arrival("ab12")
    assert again.arrival("") is None
    again.close()


def test_a_migration_id_exempts_only_the_guest_that_is_leaving(store):
    restore(store)
    with pytest.raises(DomainExists), store.restore(guest(), migration_id="ab12"):
        pass
    with (
        store.save(store.find("web01"), migration_id="ab12"),
        pytest.raises(DomainExists),
        store.restore(guest(uuid=OTHER_UUID), migration_id="ab12"),
    ):
        pass


def test_a_guest_being_saved_is_left_alone(store):
    domain = restore(store)
    with store.save(domain):
        with pytest.raises(DomainStateError, match="being saved or sent"):
            store.destroy(domain)
        with pytest.raises(DomainStateError), store.save(domain):
            pass
    store.destroy(domain)


def test_a_held_guest_says_why_and_goes_nowhere_until_released(paths, store):
    domain = restore(store)
    with store.save(domain) as source:
        source.hold("no verdict from 10.0.0.2")
    store.close()
    store = StoreHypervisor(paths)
    assert store.domains()[0].note == "no verdict from 10.0.0.2"
    with pytest.raises(DomainStateError, match="no verdict from 10"), store.save(domain):
        pass
    with pytest.raises(DomainStateError, match="another host may own it"):
        store.unpause(domain)
    store.release_hold(domain)
    assert store.domains()[0].note == ""
    with store.save(domain):
        pass
    store.close()


def test_a_guest_at_rest_is_held_and_released_by_hand(paths, store):
    domain = restore(store)
    store.hold(domain, "10.0.0.2 may own it")
    assert store.domains()[0].note == "10.0.0.2 may own it"
    assert b"10.0.0.2" in (paths.store_dir / UUID / "state.json").read_bytes()
    store.release_hold(domain)
    assert store.domains()[0].note == ""


def test_what_a_resting_guest_cannot_do_is_said_in_words(store):
    domain = restore(store)
    store.pause(domain)
    with pytest.raises(DomainStateError, match=r"cannot run without Xen.*xm migrate.*xm save"):
        store.unpause(domain)
    with pytest.raises(Unsupported, match="only rests in the embedded store"):
        store.shutdown(domain, "poweroff")
    with pytest.raises(Unsupported, match="needs Xen"):
        store.create(guest("new", OTHER_UUID))
    with pytest.raises(DomainStateError, match="only rests"):
        store.running(domain)


def test_too_large_a_guest_is_refused_before_a_page(paths, store):
    huge = guest(memory_mib=1 << 20)
    with pytest.raises(OutOfMemory, match="needs 1048576 MiB") as caught, store.restore(huge):
        pass
    assert caught.value.wanted_bytes == 1 << 40
    assert store.incoming() == [] and files(paths.store_dir) == set()


def test_room_is_counted_over_all_that_are_on_their_way(store, monkeypatch):
    monkeypatch.setattr(store._directory, "free_bytes", lambda: 40 << 20)
    with store.restore(guest(memory_mib=30)) as first:
        with (
            pytest.raises(OutOfMemory) as caught,
            store.restore(guest("web02", OTHER_UUID, memory_mib=30)),
        ):
            pass
        assert caught.value.free_bytes == 10 << 20
        send_pages(first, span(0, 1024), 1)  # 4 MiB of the 30 are on the disk already
        assert store.capabilities().free_memory_bytes == (40 - 30 + 4) << 20
    assert store.capabilities().free_memory_bytes == 40 << 20


def test_guests_arrive_side_by_side(store):
    names = [f"guest{index}" for index in range(4)]
    barrier = threading.Barrier(len(names))
    failures = []

    def arrive(index: int) -> None:
        try:
            config = guest(names[index], f"00000000-0000-4000-8000-{index:012}", 1)
            with store.restore(config) as session:
                send_all(session, opening())
                for first in range(0, 256, 16):
                    barrier.wait(80)
                    send_pages(session, span(first, 16), index + 1)
                    store.domains(), store.incoming(), store.capabilities()
                send_all(session, [Ending(), *closing(), End()])
                session.complete()
        except Exception as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=arrive, args=(index,)) for index in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(160)
    assert failures == []
    assert [summary.name for summary in store.domains()] != []
    for index, name in enumerate(names):
        with store.save(store.find(name)) as source:
            assert set(contents(source).values()) == {(0, index + 1)}
    assert len({summary.domid for summary in store.domains()}) == len(names)


def test_of_two_that_come_at_once_one_is_refused(store):
    barrier = threading.Barrier(8)
    outcomes = []

    def arrive() -> None:
        barrier.wait(80)
        try:
            with store.restore(guest()) as session:
                send_guest(session, span(0, 4))
                barrier.wait(80)
                outcomes.append(session.complete().name)
        except DomainExists:
            outcomes.append("refused")
            barrier.wait(80)

    threads = [threading.Thread(target=arrive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(160)
    assert sorted(outcomes) == ["refused"] * 7 + ["web01"]


def test_a_second_store_on_one_directory_is_refused(paths, store):
    with pytest.raises(HypervisorUnavailable, match=f"pid {os.getpid()}"):
        StoreHypervisor(paths)


def test_damaged_guests_are_reported_left_alone_and_do_not_stop_the_start(paths, store, caplog):
    restore(store)
    restore(store, guest("other", OTHER_UUID))
    store.close()
    (paths.store_dir / UUID / "state.json").write_text("{}")
    (paths.store_dir / OTHER_UUID / "types").unlink()
    again = StoreHypervisor(paths)
    assert again.domains() == []
    assert UUID in caplog.text and "'types'" in caplog.text
    restore(again)  # beside what is left of it
    assert (paths.store_dir / UUID / "state.json").read_text() == "{}"
    again.close()


def test_an_image_that_was_cut_is_an_error_and_no_signal(paths, store):
    domain = restore(store)
    os.truncate(paths.store_dir / UUID / "memory", 8192)
    with pytest.raises(HypervisorError, match="damaged"), store.save(domain):
        pass


def test_a_full_disk_stops_the_one_guest(small_disk):
    store = StoreHypervisor(Paths(small_disk))
    with pytest.raises(OutOfMemory) as caught, store.restore(guest(memory_mib=6)) as session:
        send_all(session, opening())
        for first in range(0, 4096, 256):
            send_pages(session, span(first, 256), 1)
    assert caught.value.wanted_bytes == 1 << 20
    assert files(Paths(small_disk).store_dir) == set()
    restore(store, guest(memory_mib=4), pfns=span(0, 1024))
    assert len(store.domains()) == 1
    store.close()


@pytest.mark.parametrize("kind", ["store", "auto"])
def test_the_store_is_opened_where_no_xen_is(paths, kind):
    hypervisor = open_hypervisor(kind, paths)
    assert hypervisor.name == "store"
    hypervisor.close()


def test_the_xl_driver_needs_xen(paths):
    with pytest.raises(HypervisorUnavailable, match="Xen"):
        open_hypervisor("xl", paths)
    with pytest.raises(ValueError, match="'qemu'"):
        open_hypervisor("qemu", paths)


def test_reading_types_of_scattered_frames_keeps_their_order(store):
    with store.restore(guest()) as session:
        send_all(session, opening())
        for pfn in range(20):
            send_pages(session, span(pfn, 1), pfn)
        send_all(session, [Ending(), *closing(), End()])
        domain = session.complete()
    with store.save(domain) as source:
        pages = source.read(u64(9, 3, 4))
        assert pages.batch.pfns.tolist() == [9, 3, 4]
        assert b"".join(pages.views) == b"".join(bytes([pfn]) * 4096 for pfn in (9, 3, 4))
