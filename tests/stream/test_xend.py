"""xend's envelope, and which image is behind it."""

from __future__ import annotations

import pytest

from tests import recorded, streams
from tests.drive import Recorder, drive_bytes
from xendpy.errors import StreamError, StreamTruncated
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.stream.xend import Envelope, encode_envelope, read_envelope

CONFIG = b"(domain (name x))"
WIRE = b"LinuxGuestRecord" + b"\x00\x00\x00\x11" + CONFIG


def read(wire: bytes, limit: int = 1 << 20) -> tuple[Envelope, int]:
    return drive_bytes(read_envelope(limit), wire, Recorder())


@pytest.mark.parametrize("before", [b"", b"\n", b"\r\n"])
def test_envelope_is_read_and_no_byte_more(before: bytes) -> None:
    envelope, taken = read(before + WIRE + b"image")
    assert envelope == Envelope(CONFIG, len(before) + 20)
    assert taken == len(before + WIRE)


BAD = [
    ("signature", b"X" * 20, "found 'XXXXXXXXXXXXXXXX'", 0),
    ("unprintable", b"\x00\xff" * 8, "found '" + r"\x00\xff" * 8 + "'", 0),
    ("third-line-end", b"\n\r\n" + WIRE, r"found '\nLinuxGuestRecor'", 2),
    ("negative", WIRE[:16] + b"\xff" * 4, "config size -1, expected 1 to 100", 16),
    ("zero", WIRE[:16] + bytes(4), "config size 0, expected 1 to 100", 16),
    ("over-limit", WIRE[:16] + b"\0\0\0\x65", "config size 101, expected 1 to 100", 16),
]


@pytest.mark.parametrize(("wire", "text", "at"), [row[1:] for row in BAD], ids=[r[0] for r in BAD])
def test_refused_in_the_words_of_xend(wire: bytes, text: str, at: int) -> None:
    with pytest.raises(StreamError) as caught:
        read(wire, 100)
    assert caught.value.reason == f"not a valid guest state file: {text}"
    assert caught.value.offset == at


def test_truncated_at_every_offset_in_the_words_of_xend() -> None:
    for cut in range(len(WIRE)):
        with pytest.raises(StreamTruncated) as caught:
            read(WIRE[:cut])
        doing = "signature read" if cut < 16 else "config size read" if cut < 20 else "config read"
        assert caught.value.reason == f"not a valid guest state file: {doing}"
        assert (caught.value.offset or 0) + caught.value.got == cut


@pytest.mark.parametrize("name", recorded.RELOCATIONS)
def test_recorded_envelope_round_trips(name: str) -> None:
    wire, description = recorded.load(name)
    envelope, taken = read(wire)
    config = DomainConfig.parse(envelope.config_bytes)
    assert config.guest_type == description["kind"]
    assert encode_envelope(config) == wire[:taken]


@pytest.mark.parametrize("hvm", [False, True])
def test_built_envelope_parses(hvm: bool) -> None:
    envelope, _ = read(streams.envelope(streams.config("web2", hvm=hvm)))
    config = DomainConfig.parse(envelope.config_bytes)
    assert (config.name, config.guest_type) == ("web2", GuestType.HVM if hvm else GuestType.PV)
