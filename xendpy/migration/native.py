"""A toolstack's records on their way to a peer: as they are, or as a xend's.

The legacy image announces at its head what libxl only says at the end, so for a xend the whole
guest is written down first: xl has then done all its work before the first byte leaves, and what
a xend cannot be told is refused while nothing has.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from xendpy.errors import HypervisorError, OutOfMemory
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.base import RecordSource
from xendpy.hypervisor.pipes import PipeReader, pull
from xendpy.migration.saved_file import FileSink
from xendpy.stream import libxl
from xendpy.stream.convert import Survey
from xendpy.stream.convert_legacy import ModernToLegacy
from xendpy.stream.libxl import LibxlEncoder, XlHeader, encode_xl_header
from xendpy.stream.records import Record, StreamStart


class NativeEncoder(LibxlEncoder):
    """Writes a libxl stream with xl's header before it."""

    def __init__(self, source: RecordSource) -> None:
        super().__init__(source.config.guest_type, is_converted=False)
        self._source = source

    def encode(self, record: Record) -> Iterator[bytes | memoryview]:
        """Yield the bytes of one record."""
        if isinstance(record, StreamStart):
            yield encode_xl_header(self._source.header())
        yield from super().encode(record)


class LegacySource:
    """A RecordSource whose records are those of the legacy image; ends as the one it wraps."""

    def __init__(self, source: RecordSource) -> None:
        self._source = source
        self.relinquish = source.relinquish
        self.resume = source.resume
        self.hold = source.hold
        self.cancel = source.cancel
        self.notes: list[str] = []

    @property
    def config(self) -> DomainConfig:
        return self._source.config

    @property
    def scratch(self) -> Path:
        return self._source.scratch

    def header(self) -> XlHeader:
        """Return the wrapped source's header."""
        return self._source.header()

    def records(self) -> Iterator[Record]:
        """Write the guest down, then yield what it is to a xend.

        Raises:
            UnsupportedStream: a xend cannot be told all of it.
            OutOfMemory: there is no room to write it down.
        """
        guest_type = self.config.guest_type
        with self._file() as fd:
            survey = self._write_down(fd)
            os.lseek(fd, 0, os.SEEK_SET)
            translator = ModernToLegacy(survey.facts(), lossy=False)
            reader = PipeReader(os.dup(fd))
            try:
                for record in pull(libxl.decode(guest_type), reader):
                    yield from translator.translate(record)
            finally:
                reader.close()
            self.notes = translator.notes

    def _write_down(self, fd: int) -> Survey:
        survey, sink = Survey(), FileSink(fd)
        encoder = LibxlEncoder(self.config.guest_type, is_converted=False)
        try:
            for record in self._source.records():
                survey.apply(record)
                sink.write(list(encoder.encode(record)))
        except OSError as error:
            reason = f"{self.scratch}: {error.strerror}"
            raise HypervisorError(reason, operation="save") from error
        return survey

    @contextlib.contextmanager
    def _file(self) -> Iterator[int]:
        self.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        room = os.statvfs(self.scratch)
        wanted, free = self.config.maxmem_mib << 20, room.f_bavail * room.f_frsize
        if wanted > free:
            raise OutOfMemory(
                f"{self.config.name} needs {wanted >> 20} MiB in {self.scratch} before a xend can"
                f" be sent it, {free >> 20} MiB are free",
                wanted_bytes=wanted,
                free_bytes=free,
            )
        with tempfile.TemporaryFile(dir=self.scratch) as file:
            yield file.fileno()
