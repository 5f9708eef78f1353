"""Walk a stream's records to the end: what it holds, and everything that is odd about it.

The guest's memory goes to a scratch file; this process stays small whatever the guest's size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xendpy.guest.domain import DomainConfig
from xendpy.guest.pages import PageBatch, PageType
from xendpy.guest.rounds import RoundCounter
from xendpy.migration.image import MemoryImage
from xendpy.stream.records import (
    End,
    Ending,
    OnlineVcpus,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    StreamStart,
    UnmappedPfns,
    VcpuContext,
    VcpuContextKind,
    Verify,
)

# Video memory, ROMs and special pages of a HVM guest come on top of its maxmem.
SLACK_MIB = 64


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something a reader should know; `offset` in the file, None where it has no place."""

    offset: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands in the file, in bytes."""

    offset: int
    length: int


@dataclass(slots=True)
class Findings:
    """What has been seen so far; all of it once `ended`."""

    start: StreamStart | None = None
    pv: PvInfo | None = None
    online: OnlineVcpus | None = None
    vcpus: Counter[int] = field(default_factory=Counter)  # BASIC contexts by vcpu
    frames: P2mFrames | None = None
    records: Counter[str] = field(default_factory=Counter)
    sent_by_type: NDArray[np.int64] = field(default_factory=lambda: np.zeros(16, np.int64))
    round_pages: list[int] = field(default_factory=list)
    different_pages: int = 0  # in verify mode
    ended: bool = False
    anomalies: list[Anomaly] = field(default_factory=list)


class Examiner:
    """A sink for `drive`: counts, keeps the memory, and tells every record to `witness`.

    `tell` gives the offset of the next byte in the file. `image_fd` is an empty file, open for
    reading and writing; it holds the memory in the end and stays the caller's to close.
    """

    def __init__(
        self,
        tell: Callable[[], int],
        image_fd: int,
        witness: Callable[[Place, Record], None] | None = None,
    ) -> None:
        self.findings = Findings()
        self.image: MemoryImage | None = None
        self._tell = tell
        self._image_fd = image_fd
        self._witness = witness
        self.understood_bytes = tell()  # the end of the previous record
        self._verifying = False
        self._rounds = RoundCounter()

    def begin(self) -> None:
        """Count the first record from here: what came before it is somebody else's."""
        self.understood_bytes = self._tell()

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        """Return staging memory for `batch`."""
        return self._memory().populate(batch)

    def apply(self, record: Record) -> None:
        """Count `record`, and keep what it says."""
        place = self._place(record)
        self.findings.records[type(record).__name__] += 1
        self._keep(record)
        if self._witness is not None and not isinstance(record, Ending):
            self._witness(place, record)

    def _place(self, record: Record) -> Place:
        """Attribute all bytes since the previous record to this one.

        Nothing is read ahead, so that the end is exact. `Ending` announces the record after it
        and has no bytes of its own.
        """
        end = self._tell()
        place = Place(self.understood_bytes, end - self.understood_bytes)
        if not isinstance(record, Ending):
            self.understood_bytes = end
        return place

    def _keep(self, record: Record) -> None:
        findings = self.findings
        match record:
            case StreamStart():
                findings.start = record
                self.image = MemoryImage(self._image_fd, record.p2m_size)
            case Pages():
                self._keep_pages(record)
            case PvInfo():
                findings.pv = record
            case P2mFrames():
                findings.frames = record
            case OnlineVcpus():
                findings.online = record
            case VcpuContext(kind=VcpuContextKind.BASIC):
                findings.vcpus[record.vcpu_id] += 1
            case UnmappedPfns():
                self._memory().drop(record.pfns)
            case Verify():
                self._verifying = True
            case End():
                findings.ended = True

    def _keep_pages(self, record: Pages) -> None:
        image, batch = self._memory(), record.batch
        if self._verifying:
            different = image.differing(batch, record.views)
            if len(different) and not self.findings.different_pages:
                text = f"page {int(different[0]):#x} differs when sent again to verify"
                self.findings.anomalies.append(Anomaly(self.understood_bytes, text))
            self.findings.different_pages += len(different)
            return
        image.store(batch, record.views)
        self.findings.sent_by_type += np.bincount(batch.types, minlength=16)
        self._count_round(batch)

    def _count_round(self, batch: PageBatch) -> None:
        self._rounds.add(batch.pfns)
        pages = self.findings.round_pages
        pages += [0] * (self._rounds.rounds - len(pages))
        pages[-1] += len(batch.with_data())

    def _memory(self) -> MemoryImage:
        if self.image is None:
            raise AssertionError("a decoder's first record is StreamStart")
        return self.image


def oddities(findings: Findings, image: MemoryImage, config: DomainConfig | None) -> list[Anomaly]:
    """Return what a complete stream's records say against each other and the configuration."""
    found = [Anomaly(None, text) for text in _in_vcpus(findings, config)]
    found += [Anomaly(None, text) for text in _in_memory(findings, image, config)]
    if findings.different_pages > 1:
        found.append(Anomaly(None, f"{findings.different_pages} pages differ when sent to verify"))
    return found


def _in_vcpus(findings: Findings, config: DomainConfig | None) -> list[str]:
    found = []
    online = findings.online.ids if findings.online is not None else (0,)
    if config is not None and findings.online is not None:
        limit = max(online, default=0)
        if limit >= config.vcpus:
            found.append(f"vcpu {limit} is online, the configuration says {config.vcpus} vcpus")
    if 0 not in online:
        found.append("vcpu 0 is not online")
    return found


def _in_memory(findings: Findings, image: MemoryImage, config: DomainConfig | None) -> list[str]:
    found = []
    present = image.present
    if config is not None and len(present) > config.maxmem_mib + SLACK_MIB << 8:
        found.append(f"{len(present)} pages are more than maxmem, {config.maxmem_mib} MiB")
    broken = image.count_of(PageType.BROKEN)
    if broken:
        found.append(f"{broken} pages were broken at the source: their content is lost")
    if findings.frames is not None:
        lost = np.setdiff1d(findings.frames.frames, present)
        if len(lost):
            found.append(f"p2m page {int(lost[0]):#x} is not present ({len(lost)} in all)")
    return found
