"""Choose a driver: the one place where concrete ones are named."""

from __future__ import annotations

from xendpy.errors import HypervisorUnavailable
from xendpy.hypervisor.base import Hypervisor
from xendpy.hypervisor.runner import GuestRunner
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.paths import Paths

KINDS = ("auto", "store", "xl")


def open_hypervisor(kind: str, paths: Paths, *, runner: GuestRunner | None = None) -> Hypervisor:
    """Open the driver `kind`, one of KINDS; `runner` executes guests of the embedded store.

    Raises:
        HypervisorUnavailable: it cannot be used on this host, or another daemon uses its state.
    """
    match kind:
        case "store" | "auto":
            return StoreHypervisor(paths, runner=runner)
        case "xl":
            raise HypervisorUnavailable("there is no Xen on this host: no xl to work with")
    raise ValueError(f"unknown hypervisor {kind!r}, expected one of {', '.join(KINDS)}")
