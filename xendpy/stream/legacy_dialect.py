"""What each release of Xen puts into, and understands in, a legacy image.

A receiver aborts on the first chunk it does not know, so a sender must speak the receiver's
release. Source: the xc_domain_restore.c of each release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from xendpy.guest.pages import KNOWN, PageType
from xendpy.stream.legacy_format import Chunk
from xendpy.stream.records import EmulatorSignature

# The first release that understands each chunk. Absent: never sent.
SINCE: Mapping[Chunk, tuple[int, int]] = {
    Chunk.ENABLE_VERIFY_MODE: (3, 0),
    Chunk.VCPU_INFO: (3, 1),
    Chunk.HVM_IDENT_PT: (3, 3),
    Chunk.HVM_VM86_TSS: (3, 4),
    Chunk.TSC_INFO: (4, 0),
    Chunk.HVM_CONSOLE_PFN: (4, 1),
    Chunk.LAST_CHECKPOINT: (4, 1),
    Chunk.HVM_ACPI_IOPORTS_LOCATION: (4, 1),
    Chunk.HVM_VIRIDIAN: (4, 2),  # 4.1.3 too, which nothing tells from 4.1.0
    Chunk.HVM_GENERATION_ID_ADDR: (4, 2),
    Chunk.HVM_PAGING_RING_PFN: (4, 2),
    Chunk.HVM_ACCESS_RING_PFN: (4, 2),
    Chunk.HVM_SHARING_RING_PFN: (4, 2),
    Chunk.TOOLSTACK: (4, 2),
    Chunk.HVM_IOREQ_SERVER_PFN: (4, 5),
    Chunk.HVM_NR_IOREQ_SERVER_PAGES: (4, 5),
}
SIGNATURE_SINCE: Mapping[EmulatorSignature, tuple[int, int]] = {
    EmulatorSignature.XEND: (3, 1),
    EmulatorSignature.REMUS: (4, 0),
    EmulatorSignature.LIBXL: (4, 1),
}


@dataclass(frozen=True)
class Dialect:
    """One release's way of writing a legacy image; `version` is (major, minor)."""

    version: tuple[int, int]

    @property
    def release(self) -> str:
        return "{}.{}".format(*self.version)

    def knows(self, chunk: Chunk) -> bool:
        """Say whether this release understands the chunk."""
        return chunk in SINCE and self.version >= SINCE[chunk]

    @property
    def hvm(self) -> bool:
        """HVM guests can be saved at all."""
        return self.version >= (3, 1)

    @property
    def max_p2m_size(self) -> int:
        return 1 << 24 if self.version < (3, 1) else 1 << 28

    @property
    def max_vcpu_id(self) -> int:
        """3.0 has no VCPU_INFO, up to 4.1 its bitmap is one word."""
        if self.version < (3, 1):
            return 0
        return 63 if self.version < (4, 2) else 4095

    @property
    def sign_extended(self) -> bool:
        """Entries with bit 31 set have all upper bits set: the types were signed ints."""
        return self.version < (3, 1)

    @property
    def always_ext_info(self) -> bool:
        """Before 3.2 only guests with pae_extended_cr3 have the block."""
        return self.version >= (3, 2)

    @property
    def mixed_widths(self) -> bool:
        """The guest's width may differ from the tools'."""
        return self.version >= (3, 2)

    @property
    def extended(self) -> bool:
        """128 bytes of ext_vcpucontext per vcpu, announced by `extv`."""
        return self.version >= (3, 2)

    @property
    def xsave(self) -> bool:
        """xsave state per vcpu, announced by `xcnt`."""
        return self.version >= (4, 1)

    @cached_property
    def page_types(self) -> NDArray[np.bool_]:
        """A table by page type: may it be sent?"""
        table = KNOWN.copy()
        table[PageType.XALLOC] = self.version >= (4, 2)
        table[PageType.BROKEN] = self.version >= (4, 3)
        return table


DIALECTS: Mapping[str, Dialect] = {
    f"{major}.{minor}": Dialect((major, minor))
    for major, minor in (
        (3, 0),
        (3, 1),
        (3, 2),
        (3, 3),
        (3, 4),
        (4, 0),
        (4, 1),
        (4, 2),
        (4, 3),
        (4, 4),
        (4, 5),
    )
}
LATEST_XEND = DIALECTS["4.4"]  # 4.5 has no xend
