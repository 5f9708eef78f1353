"""Image bytes that need not be sent as they are: pages of zeros, and what zstd makes smaller.

Features of the framing, `zero` and `zstd`. A PACKED frame stands for a part of the image as a
DATA frame does:

    u32 codec (0 raw, 1 zstd), u32 number of runs
    that many runs: u32 bytes of zeros, then u32 bytes of data
    the data of all runs, one after the other, raw or as one zstd frame

Zeros are told by whole pages. zstd works at level 1, on what one batch has left of data; where
that saves less than an eighth the data go raw. A guest that runs may write to a page between the
look at it and the sending: then it is dirty, and is sent again.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from struct import Struct
from typing import Any, Protocol

import numpy as np

from xendpy.errors import HandshakeError
from xendpy.guest.memory import zero_pages
from xendpy.guest.pages import PAGE_SIZE

ZERO, ZSTD = "zero", "zstd"
HEAD = Struct("<II")  # codec, runs
RUN = Struct("<II")  # zeros, data
RAW_CODEC, ZSTD_CODEC = 0, 1
MAX_RUNS = 1 << 16
LEVEL = 1
WORTH_IT = 7 / 8

Pieces = Sequence[bytes | memoryview]


class Source(Protocol):
    """Where a frame's body comes from."""

    def recv_exactly(self, count: int) -> bytes: ...

    def recv_into(self, views: Sequence[memoryview]) -> None: ...


def offered(*, compress: bool = True) -> tuple[str, ...]:
    """Return the names of the features that this host can do, without zstd if not `compress`."""
    return (ZERO, ZSTD) if compress and find_spec("zstandard") is not None else (ZERO,)


class Packer:
    """Packs what a source sends; `compress` needs the package zstandard."""

    def __init__(self, *, compress: bool = False) -> None:
        self._zstd: Any = None
        if compress:
            self._zstd = importlib.import_module("zstandard").ZstdCompressor(level=LEVEL)

    def pack(self, pieces: Pieces) -> list[bytes | memoryview] | None:
        """Return the body of a PACKED frame for `pieces`; None = a DATA frame is no longer."""
        runs, data = _split(pieces)
        if len(runs) > MAX_RUNS:
            return None
        codec = RAW_CODEC
        if self._zstd is not None and data:
            smaller = self._compressed(data)
            if smaller is not None:
                codec, data = ZSTD_CODEC, [smaller]
        if codec == RAW_CODEC and len(runs) < 2 and not runs[0][0]:
            return None
        table = b"".join([HEAD.pack(codec, len(runs)), *(RUN.pack(*run) for run in runs)])
        return [table, *data]

    def _compressed(self, data: Pieces) -> bytes | None:
        size = sum(map(len, data))
        packer = self._zstd.compressobj(size=size)
        parts = []
        for piece in data:
            # A guest that runs writes meanwhile: the compressor wants memory that stands still.
            parts.append(packer.compress(bytes(piece)))
        smaller: bytes = b"".join([*parts, packer.flush()])
        return smaller if len(smaller) < size * WORTH_IT else None


def _split(pieces: Pieces) -> tuple[list[tuple[int, int]], list[bytes | memoryview]]:
    """Return the runs of zeros and data in `pieces`, and the data."""
    runs: list[tuple[int, int]] = [(0, 0)]
    data: list[bytes | memoryview] = []

    def add(piece: bytes | memoryview, *, is_zero: bool) -> None:
        zeros, length = runs[-1]
        if not is_zero:
            runs[-1] = (zeros, length + len(piece))
            data.append(piece)
        elif length:
            runs.append((len(piece), 0))
        else:
            runs[-1] = (zeros + len(piece), 0)

    for piece in pieces:
        if isinstance(piece, bytes) or len(piece) % PAGE_SIZE:
            add(piece, is_zero=False)
            continue
        is_zero = zero_pages(piece)
        edges = np.flatnonzero(np.diff(is_zero)) + 1
        bounds = [0, *edges.tolist(), len(is_zero)]
        for first, end in pairwise(bounds):
            part = piece[first * PAGE_SIZE : end * PAGE_SIZE]
            add(part, is_zero=bool(is_zero[first]))
    return runs, data


class PackedBody:
    """The body of a PACKED frame, of `length` bytes on the wire; `left` image bytes to come."""

    def __init__(self, source: Source, length: int, limit: int) -> None:
        """Read the runs.

        Raises:
            HandshakeError: they and `length` do not fit together, or to `limit` image bytes.
        """
        self._source = source
        codec, count = HEAD.unpack(_bounded(source, HEAD.size, length))
        size = HEAD.size + RUN.size * count
        if not 0 < count <= MAX_RUNS:
            raise HandshakeError(f"PACKED frame of {count} runs, expected 1 to {MAX_RUNS}")
        self._runs = list(RUN.iter_unpack(_bounded(source, RUN.size * count, length - HEAD.size)))
        data_bytes = sum(data for _, data in self._runs)
        self.left = data_bytes + sum(zeros for zeros, _ in self._runs)
        if self.left > limit:
            raise HandshakeError(f"PACKED frame for {self.left} bytes, at most {limit} are taken")
        if codec == ZSTD_CODEC:
            self._source = _Buffer(_expanded(source.recv_exactly(length - size), data_bytes))
        elif codec != RAW_CODEC or data_bytes != length - size:
            reason = f"codec {codec}, {data_bytes} bytes of data in {length - size}"
            raise HandshakeError(f"PACKED frame with {reason}")
        self._runs.reverse()

    def recv_into(self, views: Sequence[memoryview]) -> None:
        """Fill `views`, of at most `left` bytes together."""
        data: list[memoryview] = []
        for view in views:
            self.left -= len(view)
            while view:
                zeros, length = self._runs.pop()
                here = min(zeros or length, len(view))
                if zeros:
                    np.frombuffer(view[:here], np.uint8)[:] = 0
                    self._push(zeros - here, length)
                else:
                    data.append(view[:here])
                    self._push(0, length - here)
                view = view[here:]
        if data:
            self._source.recv_into(data)

    def _push(self, zeros: int, length: int) -> None:
        if zeros or length:
            self._runs.append((zeros, length))


class _Buffer:
    """Data that were expanded."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def recv_exactly(self, count: int) -> bytes:
        data, self._data = self._data[:count], self._data[count:]
        return bytes(data)

    def recv_into(self, views: Sequence[memoryview]) -> None:
        for view in views:
            view[:] = self._data[: len(view)]
            self._data = self._data[len(view) :]


def _bounded(source: Source, count: int, left: int) -> bytes:
    if count > left:
        raise HandshakeError(f"PACKED frame with {left} bytes where {count} are needed")
    return source.recv_exactly(count)


def _expanded(data: bytes, wanted: int) -> bytes:
    try:
        zstd = importlib.import_module("zstandard")
    except ImportError:
        raise HandshakeError("a zstd frame, which this host cannot read") from None
    try:
        parameters = zstd.get_frame_parameters(data)
        if parameters.content_size != wanted:
            raise HandshakeError(f"zstd frame of {parameters.content_size} bytes, not {wanted}")
        expanded: bytes = zstd.ZstdDecompressor().decompress(data, max_output_size=wanted)
    except zstd.ZstdError as error:
        raise HandshakeError(f"zstd: {error}") from None
    return expanded
