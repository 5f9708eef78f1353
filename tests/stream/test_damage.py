"""Whatever a peer sends: a stream decodes or is refused, and nothing else happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import modern, streams
from tests.drive import Recorder, drive_bytes
from xendpy.errors import StreamError
from xendpy.guest.domain import GuestType
from xendpy.guest.pages import PageBatch
from xendpy.stream import libxc, libxl
from xendpy.stream.steps import Steps
from xendpy.stream.xend import decode_body, read_envelope

XSAVE = bytes(24)
PAGES = [[*streams.entries([1, 2, 5]), streams.Entry(7, streams.XALLOC)]]
STREAMS: dict[str, tuple[Callable[[], Steps[Any]], bytes]] = {
    "envelope": (read_envelope, streams.envelope(streams.config())),
    "pv": (lambda: decode_body(GuestType.PV), streams.pv_image(PAGES, xcnt=40).wire),
    "pv32": (
        lambda: decode_body(GuestType.PV),
        streams.pv_image(PAGES, width=4, guest_width=4).wire,
    ),
    "hvm": (lambda: decode_body(GuestType.HVM), streams.hvm_image(PAGES).wire),
    "libxc-pv": (libxc.decode, modern.pv_image(PAGES, xsave=XSAVE, msrs=bytes(16))),
    "libxl-hvm": (
        libxl.decode,
        modern.libxl_stream(modern.hvm_image(PAGES), modern.emulator(3, b"state")),
    ),
    "xl-header": (libxl.read_xl_header, modern.xl_header(b"{}\0")),
}
INTERESTING = [0, 1, 0x7F, 0x80, 0xFE, 0xFF]


class Bounded(Recorder):
    """A guest that gives memory only for pages that its image may have."""

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        assert 0 < len(batch) <= 1 << 16
        assert int(batch.pfns.max()) < 1 << 32
        return super().populate(batch)


@pytest.mark.parametrize("name", STREAMS)
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_stream_is_decoded_or_refused(name: str, data: st.DataObject) -> None:
    decoder, wire = STREAMS[name]
    damaged = bytearray(wire)
    # Control data, not the insides of pages, are where it matters: mostly near the two ends.
    near = st.integers(0, min(600, len(wire) - 1))
    far = st.integers(max(0, len(wire) - 600), len(wire) - 1)
    places = st.one_of(near, far, st.integers(0, len(wire) - 1))
    values = st.one_of(st.sampled_from(INTERESTING), st.integers(0, 255))
    for at, value in data.draw(st.lists(st.tuples(places, values), min_size=1, max_size=4)):
        damaged[at] = value
    try:
        drive_bytes(decoder(), bytes(damaged), Bounded())
    except StreamError as error:
        assert error.offset is not None
        assert 0 <= error.offset <= len(damaged)
