"""What an old xend sends is kept on disk while xl builds it: where xl fails, or the disk."""

import errno
import os
from contextlib import contextmanager

import numpy as np
import pytest

from tests.bytes_source import BytesSource
from tests.drive import Recorder, drive_bytes
from tests.guests import (
    OTHER_UUID,
    UUID,
    batch,
    closing,
    guest,
    opening,
    send_all,
    send_pages,
    span,
    u64,
)
from tests.hypervisor.test_xl import restored
from tests.peers.xl_driver import driver, incoming
from xendpy.errors import DomainNotFound, OutOfMemory
from xendpy.guest.domain import DomainState
from xendpy.guest.pages import PAGE_SIZE, PageBatch, PageType
from xendpy.hypervisor import xlspool
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.xlspool import Spool
from xendpy.migration.reception import Kept, Received, ReceiveLimits, Reception, Rejected, start
from xendpy.migration.saved_file import Cancel, restore_file
from xendpy.stream.records import End, Ending, Pages
from xendpy.stream.xend import decode_body, read_envelope

MEMORY = {"target_memkb": 16 << 10, "avail_vcpus": [0]}


def received(hypervisor, data):
    progress = start("x", "10.0.0.1")
    return Reception(
        BytesSource(data), hypervisor, limits=ReceiveLimits(), progress=progress,
        publish=lambda shown: None,
    ).run()  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """A save file of xend's."""
    from tests.streams import config, envelope
    from xendpy.stream.legacy_dialect import LATEST_XEND
    from xendpy.stream.legacy_encode import LegacyEncoder

    encoder = LegacyEncoder(LATEST_XEND, guest().guest_type)
    data = envelope(config(name="web01", memory=16))
    for record in opening():
        data += b"".join(encoder.encode(record))
    for first, value in ((0, 1), (1024, 2), (0, 3)):
        page = memoryview(bytes([value]) * (1024 * 4096))
        data += b"".join(encoder.encode(Pages(batch(span(first, 1024)), [page])))
    zeros = memoryview(bytes(1024 * 4096))
    data += b"".join(encoder.encode(Pages(batch(span(2048, 1024)), [zeros])))
    for record in [*closing(u64(4000)), End()]:
        data += b"".join(encoder.encode(record))
    return data


def test_what_an_old_xend_sends_is_kept_until_the_guest_runs(hypervisor, tmp_path, saved):
    outcome = received(hypervisor, saved)
    assert isinstance(outcome, Received), outcome
    assert incoming(tmp_path) == ["web01.save"]
    hypervisor.unpause(outcome.domain)
    assert incoming(tmp_path) == []


def test_a_failed_build_leaves_a_file_that_restores(hypervisor, tmp_path, xl, saved):
    xl.refuse["restore"] = "libxl: error: bridge is gone\n"
    outcome = received(hypervisor, saved)
    file = tmp_path / "var/lib/xend/incoming/web01.save"
    assert isinstance(outcome, Kept)
    assert "bridge is gone" in str(outcome.error)
    assert str(outcome.error).endswith(f"xm restore {file}")
    assert str(file) in outcome.where
    assert hypervisor.domains() == []
    # Every frame once, in its last state; zero pages are holes.
    assert file.stat().st_size < len(saved) - 4_000_000
    assert file.stat().st_blocks * 512 < 9 << 20
    del xl.refuse["restore"]
    domain = restore_file(hypervisor, file, cancel=Cancel())
    pages = {}
    with hypervisor.save(domain) as source:
        for record in source.records():
            if isinstance(record, Pages):
                data = b"".join(bytes(view) for view in record.views)
                for index, pfn in enumerate(record.batch.with_data().tolist()):
                    pages[pfn] = data[index * 4096]
    assert {pages[pfn] for pfn in range(1024)} == {3}
    assert {pages[pfn] for pfn in range(1024, 2048)} == {2}
    assert {pages[pfn] for pfn in range(2048, 3072)} == {0}


def test_a_stream_that_breaks_after_its_first_round_is_kept_in_part(hypervisor, tmp_path, saved):
    outcome = received(hypervisor, saved[: 13 << 20])
    assert isinstance(outcome, Kept)
    assert incoming(tmp_path) == ["web01.partial"]
    assert hypervisor.domains() == []


def test_what_a_daemon_was_receiving_when_it_ended_is_kept(hypervisor, tmp_path, xl):
    restore = hypervisor.restore(guest())
    session = restore.__enter__()
    send_all(session, opening())
    hypervisor.close()
    again = driver(tmp_path, xl)
    assert incoming(tmp_path) == ["web01.partial"]
    again.close()
    session.close()


def test_a_guest_that_came_and_was_not_started_is_told_of(hypervisor, tmp_path, xl, saved, caplog):
    outcome = received(hypervisor, saved)
    hypervisor.close()
    driver(tmp_path, xl).close()
    assert "if that host has let it go, xm unpause web01" in caplog.text
    again = driver(tmp_path, xl)
    again.unpause(outcome.domain)
    again.pause(outcome.domain)  # by an operator, which is no news
    again.close()
    caplog.clear()
    driver(tmp_path, xl).close()
    assert "xm unpause" not in caplog.text


@pytest.fixture
def file(tmp_path):
    """Where the guest of these tests is kept."""
    return tmp_path / "var/lib/xend/incoming/web01.save"


@pytest.fixture
def left(hypervisor, tmp_path, xl, caplog):
    """Begin the daemon anew, and return what it logs and lists of what it finds."""
    drivers = [hypervisor]

    def begun_anew():
        drivers.pop().close()
        caplog.clear()
        drivers.append(driver(tmp_path, xl))
        return caplog.text, [kept.label for kept in drivers[-1].partials()]

    yield begun_anew
    drivers.pop().close()


def test_a_guest_that_a_power_cut_has_taken_is_told_of_at_each_start(
    hypervisor, xl, saved, file, left
):
    received(hypervisor, saved)
    xl.guests.clear()
    for _ in range(2):
        text, listed = left()
        assert f"restore it with: xm restore {file}\n" in text
        assert "xm unpause" not in text
        assert listed == ["web01.save"]


def test_a_guest_that_could_not_be_built_is_told_of_until_it_is(
    hypervisor, tmp_path, xl, saved, file, left
):
    xl.refuse["restore"] = "libxl: error: bridge is gone\n"
    received(hypervisor, saved)
    (kept,) = hypervisor.partials()
    assert (kept.path, kept.uuid) == (file, UUID)
    assert kept.reason.endswith(f"xm restore {file}")
    text, _ = left()
    assert f"restore it with: xm restore {file}\n" in text
    made = xl.add({"c_info": {"name": "web01", "uuid": UUID}, "b_info": MEMORY}, flags="-b----")
    assert left() == ("", [])
    made.flags = "-----d"
    assert left()[1] == ["web01.save"]


def test_a_guest_that_nothing_could_be_noted_of_is_told_of(
    hypervisor, monkeypatch, saved, file, left
):
    def failing(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as disk:
        disk.setattr(Durable, "write_file", failing)
        outcome = received(hypervisor, saved)
    assert isinstance(outcome, Received), outcome
    text, listed = left()
    assert "if that host has let it go, xm unpause web01\n" in text
    assert f"should web01 not be here any more, restore it with: xm restore {file}\n" in text
    assert listed == []


def test_a_save_file_whose_guest_is_not_known_is_told_of(hypervisor, file, left):
    file.parent.mkdir(parents=True)
    file.write_bytes(b"LinuxGuestRec")
    text, listed = left()
    assert f"xm restore {file}\n" in text
    assert listed == ["web01.save"]


def test_a_save_file_of_a_guest_on_its_way_in_is_not_listed(hypervisor, xl, saved, monkeypatch):
    xl.refuse["restore"] = "libxl: error: bridge is gone\n"
    seal, listed = Spool.seal, []

    def watched(spool):
        path = seal(spool)
        listed.append(hypervisor.partials())
        return path

    monkeypatch.setattr(Spool, "seal", watched)
    received(hypervisor, saved)
    assert listed == [[]]
    assert [kept.label for kept in hypervisor.partials()] == ["web01.save"]


def test_what_is_kept_is_removed_by_its_name(hypervisor, tmp_path, saved):
    received(hypervisor, saved[: 13 << 20])
    (kept,) = hypervisor.partials()
    assert (kept.label, kept.reason) == ("web01.partial", "its stream broke off")
    assert kept.pages > 1024
    for label in ("web02.partial", "../incoming/web01.partial"):
        with pytest.raises(DomainNotFound):
            hypervisor.discard_partial(label)
    hypervisor.discard_partial("web01.partial")
    assert incoming(tmp_path) == []


def test_no_room_for_the_copy_is_refused_first(hypervisor, monkeypatch):
    real = os.statvfs

    def full(path):
        room = real(path)
        return os.statvfs_result((*room[:3], 10, 10, *room[5:]))

    monkeypatch.setattr(os, "statvfs", full)
    with pytest.raises(OutOfMemory, match="to be kept safe while it is built"):
        restored(hypervisor)
    assert hypervisor.domains() == []


class Room:
    """A file system of `mib` MiB, used by what lies in one directory."""

    def __init__(self, monkeypatch, directory, mib):
        real = os.statvfs

        def looked(path):
            used = sum(file.stat().st_blocks * 512 for file in directory.glob("*"))
            free = ((mib << 20) - used) // 4096
            return os.statvfs_result((4096, 4096, free, free, free, *real(path)[5:]))

        monkeypatch.setattr(os, "statvfs", looked)
        monkeypatch.setattr(xlspool, "SLACK_BYTES", 2 << 20)
        monkeypatch.setattr(xlspool, "WRITE_BACK_BYTES", 1 << 20)


@pytest.mark.parametrize(
    ("room_mib", "written", "fits"),
    [
        (35, 0, False),  # each wants 16 MiB and 2 besides
        (37, 0, True),
        (37, 2048, True),  # of its 18 MiB 8 are used now, and no longer wanted
        (35, 2048, False),
    ],
)
def test_a_save_file_wants_what_is_not_written_yet(
    hypervisor, tmp_path, monkeypatch, room_mib, written, fits
):
    Room(monkeypatch, tmp_path / "var/lib/xend/incoming", room_mib)
    with hypervisor.restore(guest()) as session:
        send_all(session, opening())
        for first in range(0, written, 256):
            send_pages(session, span(first, 256), 1)
        came = hypervisor.restore(guest("web02", OTHER_UUID))
        if fits:
            with came:
                assert incoming(tmp_path) == ["web01.arriving", "web02.arriving"]
        else:
            with pytest.raises(OutOfMemory, match="kept safe while it is built"), came:
                raise AssertionError("let in")


def test_a_whole_save_file_wants_nothing_more(tmp_path):
    spool = Spool(tmp_path, guest())
    for record in [*opening(), *closing(), End()]:
        spool.apply(record)
    assert spool.left_bytes == spool.wanted_bytes
    spool.seal()
    assert spool.left_bytes == 0
    spool.close()


class Disk:
    """Becomes read-only when the record of a guest comes that `goes_at` names."""

    CALLS = ("ftruncate", "pwrite", "fsync", "fdatasync", "rename", "unlink")

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch

    @contextmanager
    def goes_at(self, kind):
        apply = Spool.apply

        def watched(spool, record):
            if isinstance(record, kind):
                self._go(undone)
            apply(spool, record)

        with self._monkeypatch.context() as undone:
            undone.setattr(Spool, "apply", watched)
            yield

    def _go(self, monkeypatch):
        def failing(*_, **__):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        for name in self.CALLS:
            monkeypatch.setattr(os, name, failing)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.mark.parametrize("kind", [Ending, End])
def test_a_disk_that_fails_at_the_end_takes_no_guest_with_it(
    hypervisor, saved, disk, kind, caplog
):
    with disk.goes_at(kind):
        outcome = received(hypervisor, saved)
        assert isinstance(outcome, Received), outcome
        hypervisor.unpause(outcome.domain)
    (summary,) = hypervisor.domains()
    assert summary.state is DomainState.BLOCKED
    assert "Read-only file system" in caplog.text
    assert "web01" in caplog.text


def test_a_file_whose_guest_was_restored_and_runs_is_gone(hypervisor, tmp_path, xl, saved):
    """Its memory is older than the guest's disk by then."""
    xl.refuse["restore"] = "libxl: error: bridge is gone\n"
    assert isinstance(received(hypervisor, saved), Kept)
    (file,) = (tmp_path / "var/lib/xend/incoming").glob("*.save")
    del xl.refuse["restore"]
    domain = restore_file(hypervisor, file, cancel=Cancel())
    assert file.exists()
    hypervisor.unpause(domain)
    assert not file.exists()
    hypervisor.destroy(domain)
    assert hypervisor.partials() == []


@pytest.mark.parametrize(("kind", "verb"), [(Ending, "inspect"), (End, "restore")])
def test_where_xl_and_the_disk_fail_the_file_stays(
    hypervisor, tmp_path, xl, saved, disk, kind, verb
):
    xl.refuse["restore"] = "libxl: error: bridge is gone\n"
    with disk.goes_at(kind):
        outcome = received(hypervisor, saved)
    file = tmp_path / "var/lib/xend/incoming/web01.arriving"
    assert isinstance(outcome, Kept), outcome
    assert f"xm {verb} {file}" in outcome.where
    assert outcome.where.endswith("not safe on disk: [Errno 30] Read-only file system")
    assert file.name in incoming(tmp_path)
    del xl.refuse["restore"]
    if kind is End:
        restore_file(hypervisor, file, cancel=Cancel())


def test_a_disk_that_fails_in_the_pages_ends_the_reception(hypervisor, saved, disk):
    with disk.goes_at(Pages):
        outcome = received(hypervisor, saved)
    assert isinstance(outcome, Rejected), outcome
    assert "read-only file system" in str(outcome.error)
    assert hypervisor.domains() == []


def test_a_disk_that_fails_under_a_guest_that_its_sender_still_has_refuses_it(
    hypervisor, monkeypatch
):
    def failing(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Durable, "write_file", failing)
    with pytest.raises(OSError, match="Read-only"):
        restored(hypervisor, migration_id="m1")
    assert hypervisor.domains() == []


def rounds(seed):
    """Batches of a live guest: frames in any order, some as another type than before."""
    dice = np.random.default_rng(seed)
    for size in (64, 40, 17, 1):
        pfns = dice.choice(64, size, replace=False).astype(np.uint64)
        pfns = np.sort(pfns) if dice.random() < 0.5 else pfns
        types = dice.choice([PageType.NOTAB, PageType.L1TAB, PageType.L2TAB_PIN], size)
        pages = dice.integers(0, 256, (size, PAGE_SIZE), np.uint8)
        yield Pages(PageBatch(pfns, types.astype(np.uint8)), [pages.reshape(-1).data])


@pytest.mark.parametrize("seed", range(8))
def test_the_file_has_every_frame_as_it_came_last(tmp_path, seed):
    spool = Spool(tmp_path, guest())
    sent = Recorder()
    for record in [*opening(), *rounds(seed), *closing(), End()]:
        spool.apply(record)
        sent.apply(record)
    path = spool.seal()
    spool.close()
    read = Recorder()
    _, used = drive_bytes(read_envelope(), path.read_bytes(), read)
    drive_bytes(decode_body(guest().guest_type), path.read_bytes()[used:], read)
    assert read.memory == sent.memory
    assert read.types == sent.types
