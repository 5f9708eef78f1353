"""Digests of the frames between two xendpy hosts: a flipped bit anywhere is found at once.

A feature of the framing, `xxh3`, with the package xxhash on both sides. In each direction one
running XXH3-128 covers both control lines (the source's, then the target's) and every byte of
every frame since. With it a frame is

    u32 type, u32 length, u64 low half of the digest up to here
    body, and if there is one: 16 bytes digest up to here, big-endian as XXH3 writes it

The digest behind the header keeps a damaged length from being believed. It finds accidents, not
attackers: that is what TLS is for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from struct import Struct
from typing import Any

from xendpy.errors import HandshakeError

FEATURE = "xxh3"
SHORT = Struct("<Q")
LONG_BYTES = 16
STAGING_BYTES = 4 << 20


def offered() -> tuple[str, ...]:
    """Return the feature's name if this host can do it."""
    return (FEATURE,) if find_spec("xxhash") is not None else ()


class FrameSums:
    """The two running digests of one connection; `opening` and `ready` are its control lines."""

    def __init__(self, opening: bytes, ready: bytes) -> None:
        xxh3 = importlib.import_module("xxhash").xxh3_128
        self._sent: Any = xxh3(opening + ready)
        self._received: Any = xxh3(opening + ready)
        self._staging = bytearray()

    def seal(
        self, header: bytes, pieces: Sequence[bytes | memoryview]
    ) -> list[bytes | memoryview]:
        """Return what to send for a frame.

        The pieces are copied first: a guest that runs may write to them in between, and what is
        sent must be what was summed. The copy is valid until the next call.
        """
        self._sent.update(header)
        short = SHORT.pack(self._sent.intdigest() & 0xFFFF_FFFF_FFFF_FFFF)
        if not pieces:
            return [header, short]
        body = self._copy(pieces)
        self._sent.update(body)
        return [header, short, body, self._sent.digest()]

    def _copy(self, pieces: Sequence[bytes | memoryview]) -> memoryview:
        length = sum(len(piece) for piece in pieces)
        if len(self._staging) < length:
            self._staging = bytearray(max(length, STAGING_BYTES))
        staging, end = memoryview(self._staging), 0
        for piece in pieces:
            staging[end : end + len(piece)] = piece
            end += len(piece)
        return staging[:length]

    def check_header(self, header: bytes, short: bytes) -> None:
        """Take in a header that came, and compare.

        Raises:
            HandshakeError: something was damaged on the way.
        """
        self._received.update(header)
        if SHORT.pack(self._received.intdigest() & 0xFFFF_FFFF_FFFF_FFFF) != short:
            raise _damaged()

    def add(self, data: bytes | memoryview) -> None:
        """Take in a part of a body that came."""
        self._received.update(data)

    def check_body(self, digest: bytes) -> None:
        """Compare at the end of a body; errors as `check_header`."""
        if self._received.digest() != digest:
            raise _damaged()


def _damaged() -> HandshakeError:
    return HandshakeError("the checksum is wrong: the stream was damaged on the way")
