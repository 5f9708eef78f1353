"""What a file is, told from its first bytes."""

from __future__ import annotations

import struct

import pytest

from xendpy.guest.domain import GuestType
from xendpy.stream.sniff import FileKind, guest_type_of, kind_of

P2M_64 = struct.pack("<Q", 0x1040)
P2M_32 = struct.pack("<I", 0x1040)

KINDS = [
    ("save", b"LinuxGuestRecord\x00\x00\x01\x00(domain", FileKind.CHECKPOINT),
    ("capture", b"receive\nLinuxGuestRecord", FileKind.CAPTURE),
    ("xl", b"Xen saved domain, xl format\n \0 \r", FileKind.XL),
    ("v2", b"\xff" * 8 + b"XENF" + bytes(12), FileKind.LIBXC_V2),
    ("libxc-64", P2M_64 + b"\xff" * 8, FileKind.LIBXC),
    ("libxc-32", P2M_32 + b"\xff" * 8, FileKind.LIBXC),
    ("empty", b"", FileKind.UNKNOWN),
    ("short", P2M_64, FileKind.UNKNOWN),
    ("zeros", bytes(64), FileKind.UNKNOWN),
    ("text", b"#!/bin/sh\nexit 0\n", FileKind.UNKNOWN),
    ("p2m-too-large", struct.pack("<Q", (1 << 28) + 1) + bytes(8), FileKind.UNKNOWN),
]


@pytest.mark.parametrize(("head", "kind"), [row[1:] for row in KINDS], ids=[r[0] for r in KINDS])
def test_kind(head: bytes, kind: FileKind) -> None:
    assert kind_of(head) is kind


GUESTS = [
    ("pv64-ext-info", P2M_64 + b"\xff" * 8, GuestType.PV),
    ("pv32-ext-info", P2M_32 + b"\xff" * 4 + bytes(8), GuestType.PV),
    # 3.1: the p2m frame list at once; 0x400 reads as a count until the entries are looked at
    ("pv64-frames", P2M_64 + struct.pack("<1026Q", *range(0x400, 0x802)), GuestType.PV),
    ("pv64-high-frame", P2M_64 + struct.pack("<2Q", 0x1000, 0x1001), GuestType.PV),
    ("hvm64-batch", P2M_64 + struct.pack("<i3Q", 3, 0, 1, 2), GuestType.HVM),
    ("hvm32-batch", P2M_32 + struct.pack("<i3I", 3, 0, 1, 2), GuestType.HVM),
    ("hvm64-absent", P2M_64 + struct.pack("<i2Q", 2, 0xF0000000, 0xF0001234), GuestType.HVM),
    ("hvm64-control-first", P2M_64 + struct.pack("<i", -7), GuestType.HVM),
    ("pv-pfn-beyond", P2M_64 + struct.pack("<i2Q", 2, 0, 0x1040), GuestType.PV),
    ("bogus-type", P2M_64 + struct.pack("<i2Q", 2, 0, 0x50000001), GuestType.PV),
    ("cut-batch", P2M_64 + struct.pack("<i2Q", 3, 0, 1), None),
]


@pytest.mark.parametrize(
    ("head", "guest"), [row[1:] for row in GUESTS], ids=[r[0] for r in GUESTS]
)
def test_guest_type(head: bytes, guest: GuestType | None) -> None:
    assert guest_type_of(head) is guest
