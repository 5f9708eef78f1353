"""Examine a guest where the embedded store keeps it: a directory, whole or partial."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor import recordfile
from xendpy.hypervisor.pagetypes import PageTypes
from xendpy.hypervisor.storedimage import CONFIG, MEMORY, RECORDS, REST, STATE, TYPES, ImageState
from xendpy.migration.examine import Anomaly, Examiner, oddities
from xendpy.migration.image import MemoryImage
from xendpy.migration.recording import Report
from xendpy.stream.records import Record
from xendpy.stream.sniff import FileKind


@contextmanager
def examined(directory: Path) -> Iterator[Report]:
    """Report on a guest's directory; nothing in it is changed. The report lives in the `with`.

    Raises:
        OSError: a file is missing: it is no guest's directory.
        HypervisorError, SxpError, DomainError: a file is damaged.
    """
    state = ImageState.decode((directory / STATE).read_bytes())
    config_bytes = (directory / CONFIG).read_bytes()
    types = PageTypes.load(directory / TYPES)
    fd = os.open(directory / MEMORY, os.O_RDONLY | os.O_CLOEXEC)
    try:
        image = MemoryImage.existing(fd, types.all())
        examiner = _told(recordfile.load(directory / RECORDS))
        findings = examiner.findings
        findings.ended = not state.reason
        report = Report(
            path=directory,
            size_bytes=os.fstat(fd).st_blocks * 512,
            kind=FileKind.STORED,
            config_bytes=config_bytes,
            config=DomainConfig.parse(config_bytes),
            findings=findings,
            image=image,
        )
        if state.reason:
            rounds = f"{state.rounds} rounds, {state.pages} pages"
            report.anomalies.append(Anomaly(None, f"kept in part after {rounds}: {state.reason}"))
            report.anomalies.extend(_undecoded(directory / REST))
        else:
            report.anomalies.extend(oddities(findings, image, report.config))
        yield report
    finally:
        os.close(fd)


def _told(records: list[Record]) -> Examiner:
    with tempfile.TemporaryFile(prefix="xm-inspect-") as scratch:
        examiner = Examiner(lambda: 0, scratch.fileno())
        for record in records:
            examiner.apply(record)
    return examiner


def _undecoded(path: Path) -> Iterator[Anomaly]:
    if path.exists():
        size = path.stat().st_size
        yield Anomaly(None, f"{size} bytes of the stream lie undecoded in {path.name}")
