"""How much a peer may ask for before it is told no."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Upper bounds for every length on the wire that the format itself leaves open."""

    config_bytes: int = 1 << 20  # real ones are a few KiB
    p2m_pages: int = 1 << 28  # pfn and type share 32 bits of a legacy entry
    modern_pages: int = 1 << 32  # the same for v2 and later, whose entries have 52 bits
    ext_info_bytes: int = 64 << 10  # real: 5196
    xsave_bytes: int = 64 << 10  # per vcpu; real: at most 11 KiB
    max_vcpu_id: int = 4095  # libxc of Xen >= 4.2
    toolstack_bytes: int = 1 << 20
    hvm_context_bytes: int = 16 << 20  # real: below 1 MiB
    control_bytes: int = 1 << 20  # any other record of v2 and later; real: a few KiB
    device_model_bytes: int = 256 << 20  # real: a few MiB, more with much video RAM


DEFAULT_LIMITS = StreamLimits()
