"""Read a stream that lies in a file, from its first byte to its last, and report.

Takes what `xm save` or `xl save` wrote, a capture of what went to the relocation port, and a bare
legacy libxc stream. Whatever is wrong ends up in the report, with its place in the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xendpy.errors import DomainError, RecordError, StreamError, SxpError, UnsupportedStream
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.hypervisor.xlsxp import parse_json
from xendpy.migration.examine import Anomaly, Examiner, Findings, Place, oddities
from xendpy.migration.image import MemoryImage
from xendpy.migration.receive import FileSource, NoGuest, drive
from xendpy.stream import libxl
from xendpy.stream.records import Record
from xendpy.stream.sniff import HEAD_BYTES, REQUEST, FileKind, guest_type_of, kind_of
from xendpy.stream.steps import Steps
from xendpy.stream.xend import decode_body, read_envelope

Witness = Callable[[Place, Record], None]


@dataclass(slots=True, kw_only=True)
class Report:
    """What a file holds. `image` is None if the stream broke before its memory."""

    path: Path
    size_bytes: int
    kind: FileKind
    config_bytes: bytes = b""
    config: DomainConfig | None = None
    findings: Findings
    image: MemoryImage | None = None
    decoded_bytes: int = 0  # how far it came: everything before this offset is understood

    @property
    def whole(self) -> bool:
        """Whether the stream was read to its end."""
        return self.findings.ended

    @property
    def anomalies(self) -> list[Anomaly]:
        return self.findings.anomalies


def examine(
    path: Path,
    image_fd: int,
    *,
    guest_type: GuestType | None = None,
    witness: Witness | None = None,
) -> Report:
    """Read the file at `path`; its guest's memory goes to the empty file `image_fd`.

    `guest_type` overrides what the file says of itself. `witness` is told every record.

    Raises:
        OSError: the file cannot be read, or there is no room for the memory.
        UnsupportedStream: it is something else that Xen writes.
        StreamError: it is nothing that xend, xl or libxc wrote.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kind = _require_kind(os.pread(fd, HEAD_BYTES, 0))
        base = len(REQUEST) if kind is FileKind.CAPTURE else 0
        os.lseek(fd, base, os.SEEK_SET)
        reading = _Reading(fd, base, image_fd, witness)
        report = Report(
            path=path,
            size_bytes=os.fstat(fd).st_size,
            kind=kind,
            findings=reading.examiner.findings,
        )
        reading.run(report, guest_type)
        return report
    finally:
        os.close(fd)


def _require_kind(head: bytes) -> FileKind:
    kind = kind_of(head)
    if kind is FileKind.LIBXC_V2:
        raise UnsupportedStream(f"a {kind.value}")
    if kind is FileKind.UNKNOWN:
        raise StreamError(
            f"neither a save file, nor a relocation, nor a libxc stream: begins {head[:16]!r}"
        )
    return kind


def _text(error: StreamError) -> str:
    return f"{error.record}: {error.reason}" if isinstance(error, RecordError) else error.reason


class _Reading:
    """One pass over one file."""

    def __init__(self, fd: int, base: int, image_fd: int, witness: Witness | None) -> None:
        self._fd = fd
        self._base = base
        self._source = FileSource(fd)
        self.examiner = Examiner(self._tell, image_fd, witness)

    def run(self, report: Report, guest_type: GuestType | None) -> None:
        try:
            drive(self._image(report, guest_type), self._source, self.examiner)
        except StreamError as error:
            # The error's own place may be inside a record: what came before it is understood.
            at = None if error.offset is None else self._base + error.offset
            report.anomalies.append(Anomaly(at, _text(error)))
        report.image = self.examiner.image
        report.decoded_bytes = self.examiner.understood_bytes
        if report.whole:
            self._after_the_end(report)

    def _image(self, report: Report, guest_type: GuestType | None) -> Steps[None]:
        """Read what stands before the image; return the image's decoder."""
        if report.kind is FileKind.XL:
            self._xl_header(report)
            self.examiner.begin()
            return libxl.decode(guest_type)  # which tells by itself whose it is
        if report.kind is not FileKind.LIBXC:
            self._envelope(report)
        if guest_type is None:
            guest_type = self._guest_type(report)
        self.examiner.begin()
        return decode_body(guest_type)

    def _xl_header(self, report: Report) -> None:
        header = drive(libxl.read_xl_header(), self._source, NoGuest())
        if not (header.is_json and header.is_v2):
            raise UnsupportedStream("a save file of Xen 4.5 and before", offset=0, format="xl")
        report.config_bytes = header.config
        try:
            report.config = parse_json(header.config)
        except (StreamError, DomainError) as error:
            report.anomalies.append(Anomaly(None, f"configuration: {error}"))

    def _envelope(self, report: Report) -> None:
        envelope = drive(read_envelope(), self._source, NoGuest())
        report.config_bytes = envelope.config_bytes
        try:
            report.config = DomainConfig.parse(envelope.config_bytes)
        except (SxpError, DomainError) as error:
            place = self._tell() - len(envelope.config_bytes)
            report.anomalies.append(Anomaly(place, f"configuration: {error}"))

    def _guest_type(self, report: Report) -> GuestType:
        if report.config is not None:
            return report.config.guest_type
        guess = guest_type_of(os.pread(self._fd, HEAD_BYTES, self._tell()))
        if guess is None:
            raise StreamError("whether the guest is PV or HVM cannot be told", offset=0)
        return guess

    def _after_the_end(self, report: Report) -> None:
        left = report.size_bytes - self._tell()
        if left > 0:
            text = f"{left} bytes follow the end of the stream"
            report.anomalies.append(Anomaly(self._tell(), text))
        if report.image is not None:
            report.anomalies.extend(oddities(report.findings, report.image, report.config))

    def _tell(self) -> int:
        return self._base + self._source.offset
