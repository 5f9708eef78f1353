"""What an examination finds odd, and where it says it is; records by hand, no wire."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.guest.pages import PageBatch, PageType
from xendpy.migration.examine import Examiner, Place, oddities
from xendpy.stream.records import (
    End,
    Ending,
    LastCheckpoint,
    OnlineVcpus,
    P2mFrames,
    Pages,
    Record,
    StreamStart,
    UnmappedPfns,
    Verify,
)

START = StreamStart(guest_type=GuestType.PV, format="libxc-v1", tool_width=8, p2m_size=1 << 16)


class Stream:
    """An examiner with a position that the test moves."""

    def __init__(self, fd: int) -> None:
        self.position = 0
        self.seen: list[tuple[Place, Record]] = []
        self.examiner = Examiner(
            lambda: self.position, fd, lambda place, record: self.seen.append((place, record))
        )
        self.say(START)

    def say(self, record: Record, length: int = 8) -> None:
        self.position += length
        self.examiner.apply(record)

    def pages(self, pfns: range, fill: int = 0, kind: PageType = PageType.NOTAB) -> None:
        batch = PageBatch(np.array(pfns, np.uint64), np.full(len(pfns), kind, np.uint8))
        views = self.examiner.populate(batch)
        for view in views:
            view[:] = bytes([fill]) * len(view)
        self.say(Pages(batch, views), 100)

    def odd(self, config: DomainConfig | None = None) -> list[str]:
        assert self.examiner.image is not None
        found = oddities(self.examiner.findings, self.examiner.image, config)
        return [anomaly.text for anomaly in found]


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    yield Stream(fd)
    os.close(fd)


def config(*, memory: int = 16, vcpus: int = 2) -> DomainConfig:
    return DomainConfig.parse(
        b"(domain (name a) (uuid 00000000-0000-0000-0000-000000000001) (memory %d) (vcpus %d)"
        b" (image (linux (kernel k))))" % (memory, vcpus)
    )


def test_pages_sent_again_belong_to_another_round(stream: Stream) -> None:
    for pfns in (range(0, 10), range(10, 30), range(5, 8), range(2, 4), range(9, 11)):
        stream.pages(pfns)
    assert stream.examiner.findings.round_pages == [30, 3, 4]
    assert stream.examiner.findings.sent_by_type[PageType.NOTAB] == 37


def test_pages_that_differ_in_verify_mode_are_told_and_not_stored(stream: Stream) -> None:
    stream.pages(range(0, 8), fill=1)
    assert stream.examiner.image is not None
    before = stream.examiner.image.sha256()
    stream.say(Verify())
    stream.pages(range(0, 4), fill=1)
    stream.pages(range(4, 8), fill=2)
    findings = stream.examiner.findings
    assert findings.different_pages == 4
    assert [(a.offset, a.text) for a in findings.anomalies] == [
        (stream.position, "page 0x4 differs when sent again to verify")
    ]
    assert stream.odd() == ["4 pages differ when sent to verify"]
    assert stream.examiner.image.sha256() == before
    assert findings.round_pages == [8]


def test_the_bytes_of_a_mark_belong_to_the_record_after_it(stream: Stream) -> None:
    stream.say(Ending(), 4)
    stream.say(LastCheckpoint(), 2)
    assert stream.seen[1:] == [(Place(8, 6), LastCheckpoint())]
    assert stream.examiner.understood_bytes == 14


def test_unmapped_pages_are_gone(stream: Stream) -> None:
    stream.pages(range(0, 8), fill=3)
    stream.say(UnmappedPfns(np.array([2, 5, 100], np.uint64)))
    stream.say(End(), 0)
    assert stream.examiner.image is not None
    assert stream.examiner.image.present.tolist() == [0, 1, 3, 4, 6, 7]
    assert stream.examiner.findings.ended


def test_a_sane_guest_is_not_odd(stream: Stream) -> None:
    stream.pages(range(0, 16))
    stream.say(P2mFrames(0, 15, np.array([3], np.uint64)))
    stream.say(OnlineVcpus(1, (0, 1)))
    assert stream.odd(config()) == []


def test_lost_p2m_pages_are_odd(stream: Stream) -> None:
    stream.say(P2mFrames(0, 4095, np.array([3, 4, 5], np.uint64)))
    stream.pages(range(0, 4))
    assert stream.odd() == ["p2m page 0x4 is not present (2 in all)"]


def test_broken_pages_are_odd(stream: Stream) -> None:
    stream.pages(range(0, 3), kind=PageType.BROKEN)
    assert stream.odd() == ["3 pages were broken at the source: their content is lost"]


def test_more_memory_than_configured_is_odd(stream: Stream) -> None:
    pages = (16 + 64) * 256 + 1
    stream.pages(range(0, pages), kind=PageType.XALLOC)
    assert stream.odd(config(memory=16)) == [f"{pages} pages are more than maxmem, 16 MiB"]
    assert stream.odd(config(memory=17)) == []


@pytest.mark.parametrize(
    ("online", "text"),
    [
        ((0, 2), "vcpu 2 is online, the configuration says 2 vcpus"),
        ((1,), "vcpu 0 is not online"),
    ],
)
def test_odd_vcpus(stream: Stream, online: tuple[int, ...], text: str) -> None:
    stream.say(OnlineVcpus(max(online), online))
    assert stream.odd(config()) == [text]


def test_memory_before_the_first_record_is_our_own_mistake(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    try:
        batch = PageBatch(np.zeros(1, np.uint64), np.zeros(1, np.uint8))
        with pytest.raises(AssertionError):
            Examiner(lambda: 0, fd).populate(batch)
    finally:
        os.close(fd)
