"""The recorded streams in tests/data: what real senders sent, and what must come out.

`NAME.json` describes the guest as its sender saw it at suspend: `p2m_size`, `populated_runs`,
`page_sha256` by pfn, `page_tables`, `vcpus`, `tsc`, `hvm_params`, `well_known_pfns`. The guests
are made up, every page known; bytes, order and batching are those of Xen's own code.
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

PV64 = "xend-4.4-pv64-live"  # a relocation, from "receive\n" to the sender's FIN
HVM = "xend-4.4-hvm-live"  # the same of an HVM guest
PV32 = "libxc-4.1-pv32-nonlive"  # a bare libxc image
RELOCATIONS = (PV64, HVM)
ALL = (PV64, HVM, PV32)

REQUEST = b"receive\n"


@cache
def load(name: str) -> tuple[bytes, dict[str, Any]]:
    """Return a stream, without the `receive` line, and its description."""
    (path,) = DATA.glob(f"{name}.*.xz")
    wire = lzma.decompress(path.read_bytes())
    description = json.loads((DATA / f"{name}.json").read_text())
    return wire.removeprefix(REQUEST), description


def image(name: str) -> bytes:
    """Return a stream's libxc image: what follows the envelope, if there is one."""
    wire, _ = load(name)
    if not wire.startswith(b"LinuxGuestRecord"):
        return wire
    return wire[20 + int.from_bytes(wire[16:20], "big") :]


XL_PV = "xl-4.17-pv-trimmed"
XL_PVH = "xl-4.17-pvh-trimmed"


def xl_save(name: str) -> bytes:
    """Return what `xl save` of Xen 4.17 wrote of a Linux guest, all but a few pages cut out.

    Every record but page data is as it was; the pages left are filled with one byte each.
    """
    return lzma.decompress((DATA / f"{name}.save.xz").read_bytes())
