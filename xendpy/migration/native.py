"""A toolstack's records on their way to a peer: as they are, or as a xend's.

The legacy image announces at its head what libxl only says at the end. A guest that rests is read
twice. One that xl has just suspended is written down as a whole first: xl has then done all its
work before the first byte leaves, and what a xend cannot be told is refused while nothing has. A
running PV guest is translated as it comes, behind a head that is a guess; its tail leaves only if
the guess was right.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from xendpy.errors import HypervisorError, OutOfMemory, UnannouncedState, UnsupportedStream
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.hypervisor.base import RecordSource
from xendpy.hypervisor.pipes import PipeReader, pull
from xendpy.migration.saved_file import FileSink
from xendpy.migration.send import TAIL
from xendpy.stream import libxl
from xendpy.stream.convert import Facts, Survey
from xendpy.stream.convert_legacy import XSAVE_UNUSED, ModernToLegacy
from xendpy.stream.legacy_dialect import Dialect
from xendpy.stream.libxl import LibxlEncoder, XlHeader, encode_xl_header
from xendpy.stream.records import (
    P2mFrames,
    Record,
    StreamStart,
    VcpuContext,
    VcpuContextKind,
)

log = logging.getLogger(__name__)


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
    """A RecordSource whose records are those of the legacy image; ends as the one it wraps.

    `xsave_bytes`: what a running guest's vcpus are believed to have, None = nothing. `lossy`:
    leave out the vcpus' MSRs, which have no place there. What is left out is logged.
    """

    def __init__(
        self,
        source: RecordSource,
        dialect: Dialect,
        xsave_bytes: int | None = None,
        *,
        lossy: bool = False,
    ) -> None:
        self._source = source
        self._dialect = dialect
        self._xsave_bytes = xsave_bytes
        self._lossy = lossy
        self.relinquish = source.relinquish
        self.resume = source.resume
        self.hold = source.hold
        self.cancel = source.cancel
        self.release = source.release

    @property
    def config(self) -> DomainConfig:
        return self._source.config

    @property
    def live(self) -> bool:
        return self._source.live

    @property
    def at_rest(self) -> bool:
        return self._source.at_rest

    @property
    def scratch(self) -> Path:
        return self._source.scratch

    def header(self) -> XlHeader:
        """Return the wrapped source's header."""
        return self._source.header()

    def records(self) -> Iterator[Record]:
        """Yield what the guest is to a xend; one that stands still is written down first.

        Raises:
            UnannouncedState: the head was wrong; nothing behind the last page has been yielded.
            UnsupportedStream: a xend cannot be told all of it.
            OutOfMemory: there is no room to write it down.
        """
        if self.live:
            return self._as_it_comes()
        if self.at_rest:
            return self._read_twice()
        return self._written_down()

    def _as_it_comes(self) -> Iterator[Record]:
        if self.config.guest_type is not GuestType.PV:
            raise UnsupportedStream("sending a HVM guest to a xend while it runs")
        survey, records, head = Survey(self._dialect), self._source.records(), []
        for record in records:
            survey.apply(record)
            head.append(record)
            if isinstance(record, P2mFrames):
                break
        # Xen 4.6 and later have an extended context of every vcpu, xsave state where it is used.
        announced = replace(
            survey.facts(), has_extended=self._dialect.extended, xsave_bytes=self._xsave_bytes
        )
        translator = self._translator(announced)
        tail: list[Record] = []
        for record in chain(head, records):
            if self._says_nothing(record):
                continue
            survey.apply(record)
            translated = translator.translate(record)
            if isinstance(record, TAIL):
                tail.extend(translated)
            else:
                yield from translated
        _compare(announced, survey.facts())
        self._tell(translator.notes)
        yield from tail

    def _tell(self, notes: Iterable[str]) -> None:
        for note in notes:
            log.info("%s, on its way to a xend: %s", self.config.name, note)

    def _says_nothing(self, record: Record) -> bool:
        """Whether this is the xsave state of a vcpu that never used any: a bare header."""
        return (
            self._xsave_bytes is None
            and isinstance(record, VcpuContext)
            and record.kind is VcpuContextKind.XSAVE
            and len(record.blob) <= XSAVE_UNUSED
        )

    def _read_twice(self) -> Iterator[Record]:
        survey = Survey(self._dialect)
        for record in self._source.records():
            survey.apply(record)
        translator = self._translator(survey.facts())
        for record in self._source.records():
            yield from translator.translate(record)
        self._tell(translator.notes)

    def _translator(self, facts: Facts) -> ModernToLegacy:
        return ModernToLegacy(facts, self._dialect, lossy=self._lossy)

    def _written_down(self) -> Iterator[Record]:
        guest_type = self.config.guest_type
        with self._file() as fd:
            survey = self._write_down(fd)
            os.lseek(fd, 0, os.SEEK_SET)
            translator = self._translator(survey.facts())
            reader = PipeReader(os.dup(fd))
            try:
                for record in pull(libxl.decode(guest_type), reader):
                    yield from translator.translate(record)
            finally:
                reader.close()
            self._tell(translator.notes)

    def _write_down(self, fd: int) -> Survey:
        survey, sink = Survey(self._dialect), FileSink(fd)
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


def _compare(announced: Facts, found: Facts) -> None:
    if found.has_extended and not announced.has_extended:
        raise UnsupportedStream("the extended vcpu context in a stream for so old a xend")
    if found.p2m_size != announced.p2m_size or not np.array_equal(
        found.p2m_frames, announced.p2m_frames
    ):
        raise UnsupportedStream("a guest whose memory map grew while it was sent")
    if found.xsave_bytes != announced.xsave_bytes:
        raise UnannouncedState(found.xsave_bytes)
