"""A wire made of bytes, for the framing between two xendpy hosts."""

from __future__ import annotations

from collections.abc import Sequence

from xendpy.errors import StreamTruncated
from xendpy.relocation.sums import FrameSums


class Tape:
    """A wire made of bytes."""

    sums: FrameSums | None = None

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.sent = b""

    def recv_exactly(self, count: int) -> bytes:
        if len(self.data) < count:
            raise StreamTruncated(offset=0, wanted=count, got=len(self.data))
        head, self.data = self.data[:count], self.data[count:]
        return head

    def recv_into(self, views: Sequence[memoryview]) -> None:
        for view in views:
            view[:] = self.recv_exactly(len(view))

    def send(self, views: Sequence[bytes | memoryview]) -> None:
        self.sent += b"".join(bytes(view) for view in views)
