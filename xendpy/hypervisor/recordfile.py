"""The `records` file of a guest at rest: everything but its pages, in the order it came.

    16 bytes   MAGIC
    records    type u32, head length u32, blobs length u32, head, blobs; little-endian

The head is a JSON array of the record's fields in order; a field that is bytes or an array of
pfns stands there as its length in bytes, and its contents follow in the blobs. Records are
appended as they come, so the file of an interrupted guest ends where its stream did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np

from xendpy.errors import HypervisorError
from xendpy.guest.domain import GuestType
from xendpy.stream import records as r
from xendpy.stream.records import Record

MAGIC = b"xendpy records 1"
HEADER = Struct("<III")  # type, head length, blobs length

# Never renumbered: guests at rest outlive releases. Pages, Verify and Ending are not stored.
TYPES: dict[int, type] = {
    1: r.StreamStart,
    2: r.PvInfo,
    3: r.StaticDataEnd,
    4: r.P2mFrames,
    5: r.OnlineVcpus,
    6: r.TscInfo,
    7: r.HvmParams,
    8: r.HvmContext,
    9: r.UnmappedPfns,
    10: r.VcpuContext,
    11: r.SharedInfo,
    12: r.Toolstack,
    13: r.EmulatorXenstore,
    14: r.EmulatorContext,
    15: r.CpuidPolicy,
    16: r.MsrPolicy,
    17: r.LastCheckpoint,
    18: r.Checkpoint,
}
NUMBERS = {cls: number for number, cls in TYPES.items()}

# By the annotation of the field: how its JSON value, or its blob, becomes the field again.
_PLAIN: dict[str, Callable[[Any], object]] = {
    "int": int,
    "bool": bool,
    "str": str,
    "int | None": lambda value: value if value is None else int(value),
    "GuestType": GuestType,
    "VcpuContextKind": r.VcpuContextKind,
    "EmulatorSignature": r.EmulatorSignature,
    "tuple[int, ...]": lambda value: tuple(map(int, value)),
    "tuple[tuple[int, int], ...]": lambda value: tuple((int(a), int(b)) for a, b in value),
}
_BLOBS: dict[str, Callable[[bytes], object]] = {
    "bytes": lambda blob: blob,
    "Pfns": lambda blob: np.frombuffer(blob, "<u8").astype(np.uint64),
}


def is_stored(record: Record) -> bool:
    """Whether a record goes into the file."""
    return type(record) in NUMBERS


def encode(record: Record) -> bytes:
    """Return `record` as it stands in the file, without the magic."""
    head: list[object] = []
    blobs: list[bytes] = []
    for field in fields(record):
        value = getattr(record, field.name)
        if field.type in _BLOBS:
            blob = value if isinstance(value, bytes) else value.astype("<u8").tobytes()
            head.append(len(blob))
            blobs.append(blob)
        elif field.type in ("GuestType", "VcpuContextKind", "EmulatorSignature"):
            head.append(value.value)
        else:
            head.append(value)
    text = json.dumps(head, separators=(",", ":")).encode("ascii")
    body = b"".join(blobs)
    return HEADER.pack(NUMBERS[type(record)], len(text), len(body)) + text + body


def load(path: Path) -> list[Record]:
    """Return the records of a whole file.

    Raises:
        HypervisorError: it is not such a file, or ends early.
    """
    data = path.read_bytes()
    if data[: len(MAGIC)] != MAGIC:
        raise HypervisorError(f"{path} is not a file of records", operation="load")
    try:
        return list(_decode_all(data))
    except (ValueError, TypeError, KeyError) as error:
        raise HypervisorError(f"{path} is damaged: {error}", operation="load") from error


def _decode_all(data: bytes) -> Iterator[Record]:
    position = len(MAGIC)
    while position < len(data):
        if position + HEADER.size > len(data):
            raise ValueError(f"{len(data) - position} bytes left over at {position:#x}")
        number, head_length, blobs_length = HEADER.unpack_from(data, position)
        start = position + HEADER.size
        end = start + head_length + blobs_length
        if end > len(data):
            raise ValueError(f"record at {position:#x} ends after {len(data) - start} bytes")
        head = json.loads(data[start : start + head_length])
        yield _decode(TYPES[number], head, data[start + head_length : end])
        position = end


def _decode(cls: type, head: list[Any], blobs: bytes) -> Record:
    values: dict[str, object] = {}
    position = 0
    for field, value in zip(fields(cls), head, strict=True):
        if field.type in _BLOBS:
            values[field.name] = _BLOBS[str(field.type)](blobs[position : position + value])
            position += value
        else:
            values[field.name] = _PLAIN[str(field.type)](value)
    if position != len(blobs):
        raise ValueError(f"{cls.__name__}: {len(blobs) - position} bytes left over")
    record: Record = cls(**values)
    return record
