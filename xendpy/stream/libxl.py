"""The libxl stream v2 around a libxc image, and xl's save-file header before it.

Source: docs/specs/libxl-migration-stream; tools/xl/xl.h. The stream header is big-endian, the
records little-endian, the save-file header in host order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import TypeAlias

from xendpy.errors import RecordError, StreamError, UnsupportedStream
from xendpy.guest.domain import GuestType
from xendpy.stream.framing import RECORD_HEADER, frame, read_body
from xendpy.stream.libxc import decode_image
from xendpy.stream.libxc_encode import LibxcEncoder
from xendpy.stream.libxc_format import RecordType
from xendpy.stream.limits import DEFAULT_LIMITS, StreamLimits
from xendpy.stream.order import RecordOrder
from xendpy.stream.records import (
    EmulatorContext,
    EmulatorSignature,
    EmulatorXenstore,
    End,
    Record,
    StreamStart,
)
from xendpy.stream.steps import Steps, take, tell, unpack

Wire: TypeAlias = Iterator[bytes | memoryview]

FORMAT = "libxl"
IDENT = 0x4C6962786C466D74  # "LibxlFmt"
VERSION = 2
STREAM_HEADER = Struct(">QII")  # id, version, options
OPTION_BIG_ENDIAN = 1
OPTION_CONVERTED = 2  # made by a legacy converter
EMULATOR_HEADER = Struct("<II")  # id, index
EMULATOR_IDS = (0, 1, 2)  # unknown, qemu-traditional, qemu-upstream

XL_MAGIC = b"Xen saved domain, xl format\n \0 \r"
XL_HEADER = Struct("<IIII")  # byte order, mandatory flags, optional flags, optional length
XL_BYTE_ORDER = 0x01020304
XL_JSON_CONFIG = 1  # mandatory flags
XL_STREAM_V2 = 2
CONFIG_LENGTH = Struct("<I")


class LibxlRecord(IntEnum):
    """Types of records; the reader knows no optional ones. [libxl Records]"""

    END = 0
    LIBXC_CONTEXT = 1
    EMULATOR_XENSTORE_DATA = 2
    EMULATOR_CONTEXT = 3
    CHECKPOINT_END = 4
    CHECKPOINT_STATE = 5


@dataclass(frozen=True, slots=True)
class XlHeader:
    """A save file's header: the guest's configuration, and what follows.

    `is_json`: libxl's JSON rather than an xl configuration file. `is_v2`: a libxl stream
    follows, else a bare legacy image.
    """

    config: bytes
    is_json: bool
    is_v2: bool


def read_xl_header(limits: StreamLimits = DEFAULT_LIMITS, first: bytes = b"") -> Steps[XlHeader]:
    """Read the header that `xl save` and `xl migrate` put before the stream.

    `first`: what has been read of it already.
    """
    start = (yield from tell()) - len(first)
    if first + (yield from take(len(XL_MAGIC) - len(first))) != XL_MAGIC:
        raise StreamError("not a save file of xl", offset=start)
    order, mandatory, _optional, length = yield from unpack(XL_HEADER)
    if order != XL_BYTE_ORDER:
        raise UnsupportedStream(f"byte order {order:#x}", offset=start, format="xl")
    if mandatory & ~(XL_JSON_CONFIG | XL_STREAM_V2):
        raise UnsupportedStream(f"mandatory flag {mandatory:#x}", offset=start, format="xl")
    if length > limits.config_bytes:
        reason = f"{length} bytes of optional data, expected at most {limits.config_bytes}"
        raise RecordError("xl header", reason, offset=start)
    data = yield from take(length)
    config = _xl_config(data, start)
    return XlHeader(config, bool(mandatory & XL_JSON_CONFIG), bool(mandatory & XL_STREAM_V2))


def _xl_config(data: bytes, offset: int) -> bytes:
    if not data:
        return b""
    if len(data) >= CONFIG_LENGTH.size:
        (length,) = CONFIG_LENGTH.unpack_from(data)
        if length <= len(data) - CONFIG_LENGTH.size:
            return data[CONFIG_LENGTH.size :][:length]
    reason = f"{len(data)} bytes of optional data, expected a length and as many bytes"
    raise RecordError("xl header", reason, offset=offset)


def encode_xl_header(header: XlHeader) -> bytes:
    """Return the bytes of a save file's header; `config` as libxl wants it, NUL included."""
    mandatory = XL_JSON_CONFIG * header.is_json | XL_STREAM_V2 * header.is_v2
    data = CONFIG_LENGTH.pack(len(header.config)) + header.config if header.config else b""
    return XL_MAGIC + XL_HEADER.pack(XL_BYTE_ORDER, mandatory, 0, len(data)) + data


def decode(
    guest_type: GuestType | None = None, limits: StreamLimits = DEFAULT_LIMITS
) -> Steps[None]:
    """Decode a libxl stream, the libxc image within it included.

    Raises:
        RecordError: a header or record is malformed.
        RecordOrderError: a record that must not come here.
        UnsupportedStream: checkpoints, big-endian streams.
    """
    yield from _read_stream_header()
    order: RecordOrder | None = None
    while True:
        start = yield from tell()
        number, length = yield from unpack(RECORD_HEADER)
        kind = _known(number, start)
        if kind is LibxlRecord.LIBXC_CONTEXT and order is None:
            yield from read_body(kind.name, length, start, 0)
            order = yield from decode_image(b"", guest_type, limits)
            continue
        if order is None or kind is LibxlRecord.LIBXC_CONTEXT:
            reason = "expected one libxc image, at first"
            raise RecordError(kind.name, reason, offset=start)
        if kind is LibxlRecord.END:
            yield from read_body(kind.name, length, start, 0)
            order.decoding(End, start)
            yield End()
            return
        yield from _read_emulator(kind, length, start, limits, order)


def _read_stream_header() -> Steps[None]:
    start = yield from tell()
    ident, version, options = yield from unpack(STREAM_HEADER)
    if ident != IDENT:
        reason = f"begins with {ident:#018x}, expected {IDENT:#x}"
        raise RecordError("libxl header", reason, offset=start)
    if version != VERSION:
        raise UnsupportedStream(f"version {version}", offset=start, format=FORMAT)
    if options & OPTION_BIG_ENDIAN:
        raise UnsupportedStream("a big-endian stream", offset=start, format=FORMAT)
    if options & ~OPTION_CONVERTED:
        reason = f"options {options:#x}, expected 0x0 or 0x2"
        raise RecordError("libxl header", reason, offset=start)


def _known(number: int, start: int) -> LibxlRecord:
    try:
        kind = LibxlRecord(number)
    except ValueError:
        reason = f"record type {number:#x} is not known"
        raise StreamError(reason, offset=start, format=FORMAT) from None
    if kind in (LibxlRecord.CHECKPOINT_END, LibxlRecord.CHECKPOINT_STATE):
        raise UnsupportedStream("a checkpointed stream", offset=start, format=FORMAT)
    return kind


def _read_emulator(
    kind: LibxlRecord, length: int, start: int, limits: StreamLimits, order: RecordOrder
) -> Steps[None]:
    is_context = kind is LibxlRecord.EMULATOR_CONTEXT
    order.decoding(EmulatorContext if is_context else EmulatorXenstore, start)
    limit = limits.device_model_bytes if is_context else limits.control_bytes
    if length < EMULATOR_HEADER.size:
        reason = f"{length} bytes, expected {EMULATOR_HEADER.size} or more"
        raise RecordError(kind.name, reason, offset=start)
    emulator_id, index = yield from unpack(EMULATOR_HEADER)
    if emulator_id not in EMULATOR_IDS:
        reason = f"emulator id {emulator_id:#x}, expected 0x0, 0x1 or 0x2"
        raise RecordError(kind.name, reason, offset=start)
    blob = yield from read_body(kind.name, length - EMULATOR_HEADER.size, start, limit)
    if is_context:
        yield EmulatorContext(EmulatorSignature.V2, blob, emulator_id, index)
        return
    if blob and (blob[-1] or blob.count(0) % 2):
        reason = "expected pairs of key and value, each with a NUL behind it"
        raise RecordError(kind.name, reason, offset=start)
    yield EmulatorXenstore(emulator_id, index, blob)


class LibxlEncoder:
    """Writes one stream; send what `encode` yields before the next record is asked for.

    `is_converted` marks a stream that was made from a legacy one.
    """

    def __init__(self, guest_type: GuestType, *, is_converted: bool) -> None:
        self._options = OPTION_CONVERTED if is_converted else 0
        self._libxc = LibxcEncoder(guest_type)
        self._in_image = True

    def encode(self, record: Record) -> Wire:
        """Yield the bytes of one record, which may be none.

        Raises:
            UnsupportedStream: the format cannot carry it.
        """
        match record:
            case StreamStart():
                yield STREAM_HEADER.pack(IDENT, VERSION, self._options)
                yield frame(LibxlRecord.LIBXC_CONTEXT)
                yield from self._libxc.encode(record)
            case EmulatorXenstore():
                yield from self._leave_image(record)
                header = EMULATOR_HEADER.pack(record.emulator_id, record.index)
                yield frame(LibxlRecord.EMULATOR_XENSTORE_DATA, header + record.blob)
            case EmulatorContext():
                yield from self._leave_image(record)
                length = EMULATOR_HEADER.size + len(record.blob)
                yield RECORD_HEADER.pack(LibxlRecord.EMULATOR_CONTEXT, length)
                yield EMULATOR_HEADER.pack(record.emulator_id, record.index)
                yield record.blob
                yield bytes(-length % 8)
            case End():
                yield from self._leave_image(record)
                yield frame(LibxlRecord.END)
            case _:
                yield from self._libxc.encode(record)

    def _leave_image(self, record: Record) -> Wire:
        self._libxc.order.encoding(type(record))
        if self._in_image:
            self._in_image = False
            yield frame(RecordType.END)
