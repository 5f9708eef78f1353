"""Convert a save file: xend's to one that `xl restore` takes, and back.

Offline and streaming: memory is one batch, and a byte a page on the way back, for which the file
is read twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from xendpy.errors import StreamError, UnsupportedStream
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.hypervisor.xlconfig import to_json
from xendpy.hypervisor.xlguest import read_guest
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.hypervisor.xlsxp import parse_json
from xendpy.migration.receive import FileSource, NoGuest, drive
from xendpy.migration.saved_file import FileSink, existing_file, new_file
from xendpy.stream import libxl
from xendpy.stream.convert import Conversion, Survey, to_legacy, to_modern
from xendpy.stream.legacy_dialect import Dialect
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.libxl import LibxlEncoder, XlHeader, encode_xl_header, read_xl_header
from xendpy.stream.sniff import REQUEST, FileKind, kind_of
from xendpy.stream.steps import Steps
from xendpy.stream.xend import decode_body, encode_envelope, read_envelope

HEAD_BYTES = 64
Write = Callable[[Iterable[bytes | memoryview]], None]


class Format(StrEnum):
    """What a save file is for."""

    XL = "xl"
    XEND = "xend"


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What became of it; `notes` name what could not be taken along."""

    config: DomainConfig
    format: Format
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """The xend that is to restore a file.

    `tool_width` None = nobody has said: 8, and its own files need no rewriting. `lossy`: leave
    out the vcpus' MSRs.
    """

    dialect: Dialect
    tool_width: int | None = None
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class _Opened:
    # A save file whose head has been read; `image` decodes what follows, once each.
    config: DomainConfig
    kind: FileKind
    is_modern: bool
    image: Callable[[], Steps[None]]


def convert_file(
    source: Path,
    target: Path,
    *,
    to: Format | None,
    receiver: Receiver,
    rules: GuestRules,
) -> Converted:
    """Write `source` as the other format, or as `to`; the target appears whole or not at all.

    Raises:
        HypervisorError: a file cannot be read or written.
        StreamError: the source is no save file, is damaged, or holds what the target cannot.
        DomainError: its configuration cannot be carried over.
    """
    with existing_file(source) as fd:
        opened = _open(fd)
        wanted = to or (Format.XEND if opened.kind is FileKind.XL else Format.XL)
        with new_file(target) as out:
            sink = FileSink(out)
            notes: list[str] = []

            def write(pieces: Iterable[bytes | memoryview]) -> None:
                sink.write(list(pieces))

            if wanted is Format.XL:
                _to_xl(fd, opened, write, rules)
            else:
                notes = _to_xend(fd, opened, write, receiver)
    return Converted(config=opened.config, format=wanted, notes=tuple(notes))


def _open(fd: int) -> _Opened:
    kind = kind_of(os.pread(fd, HEAD_BYTES, 0))
    if kind is FileKind.XL:
        return _open_xl(fd)
    if kind is FileKind.CAPTURE:
        os.lseek(fd, len(REQUEST), os.SEEK_SET)
    elif kind is not FileKind.CHECKPOINT:
        raise StreamError("neither a save file of xend's nor of xl's")
    envelope = drive(read_envelope(), FileSource(fd), NoGuest())
    config = DomainConfig.parse(envelope.config_bytes)
    position = os.lseek(fd, 0, os.SEEK_CUR)
    modern = os.pread(fd, 8, position) == b"\xff" * 8
    return _Opened(config, kind, modern, lambda: decode_body(config.guest_type))


def _open_xl(fd: int) -> _Opened:
    header = drive(read_xl_header(), FileSource(fd), NoGuest())
    if not header.is_json:
        raise UnsupportedStream("a configuration that is not JSON (Xen 4.4 and before)")
    config = parse_json(header.config)
    if header.is_v2:
        return _Opened(config, FileKind.XL, True, lambda: libxl.decode(config.guest_type))
    return _Opened(config, FileKind.XL, False, lambda: decode_body(config.guest_type))


def _to_xl(fd: int, opened: _Opened, write: Write, rules: GuestRules) -> None:
    config = opened.config
    guest = read_guest(config, rules)
    write([encode_xl_header(XlHeader(to_json(guest), is_json=True, is_v2=True))])
    encoder = LibxlEncoder(config.guest_type, is_converted=not opened.is_modern)
    if opened.is_modern:
        conversion = Conversion(lambda record: iter((record,)), encoder, write)
    else:
        conversion = to_modern(encoder, write)
    drive(opened.image(), FileSource(fd), conversion)


def _to_xend(fd: int, opened: _Opened, write: Write, receiver: Receiver) -> list[str]:
    dialect, tool_width = receiver.dialect, receiver.tool_width or 8
    if not opened.is_modern:
        if receiver.tool_width is None:
            raise StreamError("the image is xend's already", format=str(opened.kind))
        encoder = LegacyEncoder(dialect, opened.config.guest_type, tool_width)
        write([encode_envelope(opened.config)])
        same = Conversion(lambda record: iter((record,)), encoder, write)
        drive(opened.image(), FileSource(fd), same)
        return []
    if opened.config.image()[:1] == ["pvh"]:
        raise UnsupportedStream("a PVH guest in a stream for a xend")
    start = os.lseek(fd, 0, os.SEEK_CUR)
    survey = Survey(dialect)
    drive(opened.image(), FileSource(fd), survey)
    os.lseek(fd, start, os.SEEK_SET)
    write([encode_envelope(opened.config)])
    conversion, notes = to_legacy(
        survey.facts(), dialect, write, tool_width=tool_width, lossy=receiver.lossy
    )
    drive(opened.image(), FileSource(fd), conversion)
    if opened.config.guest_type is GuestType.HVM:
        notes.append("no xend's device model can load the state of qemu-xen")
    return notes
