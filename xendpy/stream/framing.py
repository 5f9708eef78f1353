"""The frame of a record in a libxc v2 image and in a libxl v2 stream alike.

u32 type, u32 length, body, zeros up to a multiple of 8 that the length does not count. Source:
libxc-migration-stream and libxl-migration-stream, "Records".
"""

from __future__ import annotations

from struct import Struct

from xendpy.errors import RecordError
from xendpy.stream.steps import MAX_RECORD, Steps, Take, take

RECORD_HEADER = Struct("<II")
ALIGNMENT = 8
OPTIONAL = 1 << 31  # of a type: who does not know it may skip it


def read_body(record: str, length: int, start: int, limit: int) -> Steps[bytes]:
    """Return a body of `length` bytes, its padding taken too.

    Raises:
        RecordError: it is longer than `limit`, or padded with something.
    """
    if length > limit:
        raise RecordError(record, f"{length} bytes, expected at most {limit}", offset=start)
    body = yield from take_large(length)
    padding = yield from take(-length % ALIGNMENT)
    if any(padding):
        raise RecordError(record, "the padding is not zero", offset=start)
    return body


def take_large(count: int) -> Steps[bytes]:
    """Return `count` bytes, which may be more than one record could have."""
    if count <= MAX_RECORD:
        return (yield from take(count))
    pieces = []
    while count:
        piece: bytes = yield Take(min(count, MAX_RECORD))
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def frame(kind: int, body: bytes = b"") -> bytes:
    """Return a whole record."""
    return RECORD_HEADER.pack(kind, len(body)) + body + bytes(-len(body) % ALIGNMENT)
