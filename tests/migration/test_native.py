import numpy as np
import pytest

from tests.bytes_source import BytesSource
from tests.guests import guest, send_guest, span
from tests.peers.fake_xl import FakeXl
from tests.peers.xl_driver import driver
from xendpy.errors import OutOfMemory, UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import PAGE_SIZE, PageBatch, PageType
from xendpy.migration import native
from xendpy.migration.native import LegacySource, NativeEncoder
from xendpy.migration.receive import drive
from xendpy.migration.send import CancelToken, MigrationPlan, Sender
from xendpy.stream.legacy_dialect import LATEST_XEND
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.libxl import LibxlEncoder
from xendpy.stream.records import (
    OnlineVcpus,
    Pages,
    SharedInfo,
    StreamStart,
    TscInfo,
    UnmappedPfns,
)
from xendpy.stream.xend import decode_body


class Notes:
    def __init__(self):
        self.still = []
        self.rounds = []
        self.dirtied = []
        self.sent_pages = 0

    def sent(self, nr_bytes, nr_pages):
        self.sent_pages += nr_pages

    def round_done(self, done):
        self.rounds.append((done.index, done.sent_pages, done.last))
        self.dirtied.append(done.dirtied_pages)

    def stands_still(self, since_s):
        assert since_s >= 0
        self.still.append(len(self.rounds))

    def suspended(self, news):
        raise AssertionError("a toolstack suspends by itself")


@pytest.fixture
def hosts(tmp_path):
    """Two drivers, the second with nothing on it."""
    made = [driver(tmp_path / name, FakeXl()) for name in ("a", "b")]
    yield made
    for host in made:
        host.close()


def send(source, encoder, notes=None):
    """Return the bytes of memory, and those of the tail."""
    parts = [[], []]
    sender = Sender(
        source=source,
        encoder=encoder,
        write=lambda pieces: parts[-1].extend(map(bytes, pieces)),
        plan=MigrationPlan(live=False),
        observer=notes or Notes(),
        cancel=CancelToken(),
    )
    tail = parts.pop()
    sender.send_memory()
    parts.append(tail)
    sender.send_tail()
    return b"".join(parts[0]), b"".join(parts[1])


def contents(host, domain):
    pages = {}
    with host.save(domain) as source:
        for record in source.records():
            if isinstance(record, Pages):
                data = b"".join(bytes(view) for view in record.views)
                for index, pfn in enumerate(record.batch.with_data().tolist()):
                    pages[pfn] = data[index * 4096]
        source.resume()
    return pages


def restored(host):
    with host.restore(guest()) as session:
        send_guest(session, span(0, 40), 9)
        return session.complete()


def receive(host, data):
    with host.restore(guest(), migration_id="c" * 32) as session:
        drive(decode_body(guest().guest_type), BytesSource(data), session)
        return session.complete()


@pytest.mark.parametrize("how", ["native", "legacy"])
def test_a_guest_goes_from_xl_to_xl(hosts, how):
    here, there = hosts
    domain = restored(here)
    notes = Notes()
    with here.save(domain) as source:
        if how == "native":
            memory, tail = send(source, NativeEncoder(source), notes)
            assert memory.startswith(b"Xen saved domain, xl format")
        else:
            wrapped = LegacySource(source, LATEST_XEND)
            encoder = LegacyEncoder(LATEST_XEND, guest().guest_type)
            memory, tail = send(wrapped, encoder, notes)
        source.relinquish()
    assert notes.still == [0]
    ((index, sent_pages, last),) = notes.rounds
    assert (index, last) == (0, True)
    assert sent_pages >= 40
    assert here.domains() == []
    # Without its tail no receiver can build the guest.
    assert len(tail) > 4096
    assert len(memory) > 40 * 4096
    came = receive(there, memory + tail)
    assert contents(there, came) == dict.fromkeys(range(40), 9)
    assert there.arrival("c" * 32) == came


def test_pfns_that_are_listed_without_a_page_were_not_sent():
    # What libxc does with the holes of an HVM guest, up to 4 GiB.
    types = np.array([PageType.XTAB, PageType.NOTAB, PageType.XALLOC, PageType.L1TAB], np.uint8)
    none = np.full(4, PageType.XTAB, np.uint8)

    class Listed:
        live = False

        def records(self):
            yield StreamStart(
                guest_type=GuestType.HVM, format="libxc-v3", tool_width=8, p2m_size=0
            )
            yield Pages(PageBatch(span(0, 4), none), ())
            yield Pages(PageBatch(span(4, 4), types), (memoryview(bytes(2 * PAGE_SIZE)),))

    notes = Notes()
    send(Listed(), LibxlEncoder(GuestType.HVM, is_converted=False), notes)
    assert notes.sent_pages == 2
    assert notes.rounds == [(0, 2, True)]
    assert notes.still == [0]


@pytest.mark.parametrize(
    ("batches", "rounds"),
    [
        # The guest stood still before the last of them.
        ([(0, 4), (4, 4), (2, 3), (9, 1), (2, 1)], [(0, 8, False), (1, 4, False), (2, 1, True)]),
        # libxc's last iteration was empty, or its pages lay above: nobody can tell.
        ([(0, 4), (4, 4)], []),
    ],
)
def test_the_iterations_of_a_guest_that_runs_are_told_from_its_pages(batches, rounds):
    class Running:
        live = True

        def records(self):
            for first, nr in batches:
                types = np.zeros(nr, np.uint8)
                yield Pages(
                    PageBatch(span(first, nr), types), (memoryview(bytes(nr * PAGE_SIZE)),)
                )
            yield SharedInfo(bytes(4096))

    notes = Notes()
    send(Running(), Named(), notes)
    assert notes.rounds == rounds
    assert notes.dirtied == [0 if last else None for _, _, last in rounds]
    assert notes.still == [len(rounds)]


class Named:
    """An encoder whose bytes say which record they were."""

    def encode(self, record):
        yield f"{type(record).__name__} ".encode()


@pytest.mark.parametrize("live", [True, False])
def test_the_tail_is_what_follows_the_last_page(live):
    tsc = TscInfo(mode=2, khz=1, nsec=2, incarnation=3)
    pages = Pages(PageBatch(span(0, 1), np.zeros(1, np.uint8)), (memoryview(bytes(PAGE_SIZE)),))

    class Unusual:
        def records(self):
            yield tsc
            yield pages
            yield tsc
            yield pages
            yield OnlineVcpus(0, (0,))
            yield UnmappedPfns(span(7, 1))
            yield SharedInfo(bytes(4096))

    source, notes = Unusual(), Notes()
    source.live = live
    memory, tail = send(source, Named(), notes)
    assert memory == b"TscInfo Pages TscInfo Pages "
    assert tail == b"OnlineVcpus UnmappedPfns SharedInfo "
    assert len(notes.still) == 1


def test_what_the_format_has_no_place_for_is_found_before_the_tail(hosts):
    here, _ = hosts
    domain = restored(here)

    class Refusing(LegacyEncoder):
        def encode(self, record):
            if isinstance(record, SharedInfo):
                raise UnsupportedStream("this")
            return super().encode(record)

    with here.save(domain) as source:
        wrapped, sent = LegacySource(source, LATEST_XEND), []
        sender = Sender(
            source=wrapped,
            encoder=Refusing(LATEST_XEND, guest().guest_type),
            write=sent.extend,
            plan=MigrationPlan(live=False),
            observer=Notes(),
            cancel=CancelToken(),
        )
        with pytest.raises(UnsupportedStream):
            sender.send_memory()
        source.resume()
    assert here.domains()[0].note == ""


def test_a_native_image_arrives_byte_by_byte(hosts):
    here, there = hosts
    domain = restored(here)
    with here.save(domain) as source:
        data = b"".join(send(source, NativeEncoder(source)))
        source.resume()
    receive(there, data)
    assert there._tool.guests[0].stream == data[data.index(b"LibxlFmt") :]


def test_a_guest_for_a_xend_is_written_down_before_a_byte_leaves(hosts, monkeypatch):
    here, _ = hosts
    domain = restored(here)

    class Room:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(native.os, "statvfs", lambda path: Room)
    with here.save(domain) as source:
        with pytest.raises(OutOfMemory, match="before a xend can be sent it"):
            next(iter(LegacySource(source, LATEST_XEND).records()))
        source.resume()
    assert here.domains()[0].note == ""
