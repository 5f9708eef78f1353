"""What `xm migrate` can ask for, as it crosses XML-RPC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xendpy.config import RELEASES, TOOL_BITS
from xendpy.errors import DomainError
from xendpy.migration.precopy import OnNoConvergence, PrecopyLimits
from xendpy.relocation.stripes import MAX_STREAMS


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateOptions:
    """What our own `xm migrate` can ask for beyond xend's; bandwidth in bytes/s, 0 = any.

    `release` empty, `tool_bits` 0 = as the peer's row says.
    """

    limits: PrecopyLimits = field(default_factory=PrecopyLimits)
    bandwidth_bytes_per_s: int = 0
    release: str = ""
    tool_bits: int = 0
    compress: bool = False
    streams: int = 1
    lossy: bool = False

    @classmethod
    def parse(cls, value: dict[str, Any]) -> MigrateOptions:
        """Return the options in an RPC struct.

        Raises:
            DomainError: one of them is impossible.
        """
        known = {
            "max_downtime_s", "max_iterations", "timeout_s", "on_no_convergence", "bandwidth",
            "release", "tools", "compress", "streams", "lossy",
        }  # fmt: skip
        unknown = set(value) - known
        if unknown:
            raise DomainError("", f"unknown migration option: {', '.join(sorted(unknown))}")
        try:
            default = PrecopyLimits()
            limits = PrecopyLimits(
                max_downtime_s=float(value.get("max_downtime_s", default.max_downtime_s)),
                max_iterations=int(value.get("max_iterations", default.max_iterations)),
                timeout_s=float(value.get("timeout_s", 0)),
                on_no_convergence=OnNoConvergence(value.get("on_no_convergence", "pause")),
            )
            options = cls(
                limits=limits,
                bandwidth_bytes_per_s=int(value.get("bandwidth", 0)),
                release=str(value.get("release", "")),
                tool_bits=int(value.get("tools", 0)),
                compress=bool(value.get("compress", False)),
                streams=int(value.get("streams", 1)),
                lossy=bool(value.get("lossy", False)),
            )
        except (ValueError, TypeError) as error:
            raise DomainError("", f"bad migration option: {error}") from error
        if limits.max_downtime_s <= 0 or limits.max_iterations < 1 or limits.timeout_s < 0:
            raise DomainError("", "downtime, iterations and timeout must be positive")
        if not 0 < options.streams <= MAX_STREAMS:
            raise DomainError("", f"{options.streams} streams, expected 1 to {MAX_STREAMS}")
        if options.release not in ("", *RELEASES):
            expected = ", ".join(RELEASES)
            raise DomainError("", f"release {options.release}, expected one of {expected}")
        if "tools" in value and str(options.tool_bits) not in TOOL_BITS:
            expected = " or ".join(TOOL_BITS)
            raise DomainError("", f"tools of {options.tool_bits} bits, expected {expected}")
        return options
