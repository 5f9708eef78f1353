"""Choose a driver: the one place where concrete ones are named."""

from __future__ import annotations

import logging
from pathlib import Path

from xendpy.errors import HypervisorError, HypervisorUnavailable
from xendpy.hypervisor.base import Hypervisor
from xendpy.hypervisor.runner import GuestRunner
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.hypervisor.xl import XlHypervisor
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.hypervisor.xltool import XlTool
from xendpy.paths import Paths

log = logging.getLogger(__name__)

KINDS = ("auto", "store", "xl")
XEN_CAPABILITIES = Path("/proc/xen/capabilities")
HYPERVISOR_TYPE = Path("/sys/hypervisor/type")


def open_hypervisor(
    kind: str,
    paths: Paths,
    *,
    runner: GuestRunner | None = None,
    rules: GuestRules | None = None,
) -> Hypervisor:
    """Open the driver `kind`, one of KINDS.

    `runner` executes guests of the embedded store; `rules` are for what comes in.

    Raises:
        HypervisorUnavailable: it cannot be used on this host, or another daemon uses its state.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown hypervisor {kind!r}, expected one of {', '.join(KINDS)}")
    if kind == "auto":
        kind = "xl" if has_xl() else "store"
    if kind == "store":
        return StoreHypervisor(paths, runner=runner, rules=rules)
    if not _is_control_domain():
        raise HypervisorUnavailable(
            f"there is no Xen on this host: {XEN_CAPABILITIES} does not say control_d"
        )
    return XlHypervisor(paths, rules=rules)


def has_xl() -> bool:
    """Say whether this is the control domain of a Xen whose xl answers."""
    if not _is_control_domain():
        if _read(HYPERVISOR_TYPE) == "xen":
            log.warning("Xen is below, and %s does not say control_d", XEN_CAPABILITIES)
        return False
    try:
        XlTool().run(["info"])
    except HypervisorError as error:
        log.warning("Xen is below, and xl does not answer: %s", error)
        return False
    return True


def _is_control_domain() -> bool:
    return "control_d" in _read(XEN_CAPABILITIES).split()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
