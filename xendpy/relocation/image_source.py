"""The image inside DATA and PACKED frames, as it comes: what the stream's decoder reads from."""

from __future__ import annotations

from collections.abc import Sequence

from xendpy.errors import HandshakeError, StreamTruncated
from xendpy.relocation import frames
from xendpy.relocation.frames import FrameType, Wire
from xendpy.relocation.packing import PackedBody
from xendpy.relocation.sums import LONG_BYTES


class ImageAborted(Exception):
    """The source said ABORT in the middle of the image: the guest stays there."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ImageSource:
    """The image inside DATA frames, as the stream decoder's source.

    `offset` counts image bytes. Pages go from the socket to `views` with no copy between.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._left = 0
        self._summed = _Summed(wire)
        self._packed: PackedBody | None = None
        self._ended = False
        self.offset = 0

    def recv_exactly(self, count: int) -> bytes:
        """Return the next `count` image bytes."""
        buffer = bytearray(count)
        self.recv_into([memoryview(buffer)])
        return bytes(buffer)

    def recv_into(self, views: Sequence[memoryview]) -> None:
        """Fill `views` with the next image bytes.

        Raises:
            StreamTruncated: the image ended before.
            ImageAborted: the source gave up.
        """
        wanted = sum(len(view) for view in views)
        start = self.offset
        pending = list(views)
        while pending:
            if not self._ready():
                got = self.offset - start
                raise StreamTruncated(offset=start, wanted=wanted, got=got)
            now, pending = _split(pending, self._left)
            (self._packed or self._summed).recv_into(now)
            count = sum(len(view) for view in now)
            self._left -= count
            self.offset += count
            self._check()

    def recv_some(self, view: memoryview) -> int:
        """Read image bytes into `view` and return how many; 0 = the image ended."""
        if not self._ready():
            return 0
        count = min(self._left, len(view))
        self.recv_into([view[:count]])
        return count

    def recv_rest(self, limit: int) -> bytes:
        """Return all image bytes up to IMAGE_END.

        Raises:
            StreamTruncated: they are more than `limit`.
        """
        parts: list[bytes] = []
        start = self.offset
        while self._ready():
            if self.offset - start + self._left > limit:
                raise StreamTruncated(offset=start, wanted=limit, got=limit)
            parts.append(self.recv_exactly(self._left))
        return b"".join(parts)

    def finish(self) -> None:
        """Check that the image ends here and that every byte of it came.

        Raises:
            HandshakeError: image bytes are left over, or the source counted others.
        """
        if self._ready():
            raise HandshakeError(f"{self._left} image bytes follow the end of the image")

    def _check(self) -> None:
        # Pages are in the guest by then; it is not run before every digest was right.
        if self._wire.sums is not None and not self._left:
            self._wire.sums.check_body(self._wire.recv_exactly(LONG_BYTES))

    def _ready(self) -> bool:
        # Whether image bytes are left, in this frame or a following one; empty frames are passed.
        while not self._left and not self._ended:
            self._next_frame()
        return self._left > 0

    def _next_frame(self) -> None:
        frame, length = frames.recv_header(self._wire)
        self._packed = None
        if frame is FrameType.DATA:
            self._left = length
            return
        if frame is FrameType.PACKED:
            self._packed = PackedBody(self._summed, length, frames.MAX_DATA)
            self._left = self._packed.left
            if not self._left:
                raise HandshakeError("an empty PACKED frame")
            return
        body = frames.recv_body(self._wire, length)
        if frame is FrameType.ABORT:
            raise ImageAborted(body.decode("utf-8", "replace"))
        if frame is not FrameType.IMAGE_END or length != frames.IMAGE_BYTES.size:
            raise HandshakeError(f"{frame.name} frame of {length} bytes inside the image")
        (said,) = frames.IMAGE_BYTES.unpack(body)
        if said != self.offset:
            raise HandshakeError(f"the image has {self.offset} bytes, its sender counts {said}")
        self._ended = True


class _Summed:
    """A frame's body as it comes, summed where digests were agreed on."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def recv_exactly(self, count: int) -> bytes:
        data = self._wire.recv_exactly(count)
        if self._wire.sums is not None:
            self._wire.sums.add(data)
        return data

    def recv_into(self, views: Sequence[memoryview]) -> None:
        self._wire.recv_into(views)
        if self._wire.sums is not None:
            for view in views:
                self._wire.sums.add(view)


def _split(views: Sequence[memoryview], room: int) -> tuple[list[memoryview], list[memoryview]]:
    """Return the views that fit into `room` bytes, the last one cut, and what is left."""
    now: list[memoryview] = []
    for index, view in enumerate(views):
        if len(view) > room:
            if room:
                now.append(view[:room])
            return now, [view[room:], *views[index + 1 :]]
        now.append(view)
        room -= len(view)
    return now, []
