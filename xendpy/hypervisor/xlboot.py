"""What boots a PV guest: a kernel of this host, or a boot loader that finds one in its disk.

Sources: XendBootloader.py and XendConfig.py, Xen 3.0.3 - 4.4; libxl_bootloader.c, Xen 4.17.
"""

from __future__ import annotations

import os.path
import re
import shlex
from dataclasses import dataclass, replace

from xendpy import sxp
from xendpy.errors import DomainError
from xendpy.guest.domain import DomainConfig, kernel_arguments
from xendpy.hypervisor.xlrules import GuestRules

PYGRUB = "pygrub"  # xl's word for its own, which it finds wherever it was installed
XEND_PYGRUB = "/usr/bin/pygrub"  # xend runs a path only; this was its own for all its releases
# What boot loaders took out of a guest's disk for one boot: xend's pygrub, RHEL 5's, SLES's.
COPY = re.compile(r"/var/(run/xend/boot|lib/xen|lib/xen/tmp)/[^/]+")
# What a received guest may tell pygrub: it could be told to write anywhere, or to wait for keys.
ARGUMENT = re.compile(r"-q|--quiet|--offset=[0-9]+|--(entry|kernel|ramdisk|args)=.*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class XlBoot:
    """With a boot loader, kernel and ramdisk are files in the guest's disk that it is to take.

    `note` says what a received guest will miss here.
    """

    kernel: str = ""
    ramdisk: str = ""
    cmdline: str = ""
    bootloader: str = ""
    bootloader_args: tuple[str, ...] = ()
    note: str = ""


def read_boot(config: DomainConfig, rules: GuestRules) -> XlBoot:
    """Return what boots the guest on this host.

    Raises:
        DomainError: a kernel lies outside the allowed directories, or the boot loader's arguments
            have an open quote.
    """
    loader, kernel = config.text("bootloader"), _said(config, "kernel")
    if not loader and rules.confined and COPY.fullmatch(kernel):
        # Xen 3.0.4 does not say which boot loader made it, and it is on the old host alone.
        note = f"{kernel} was a boot loader's for one boot: the guest cannot reboot by itself"
        return XlBoot(note=note)
    if not loader:
        return XlBoot(
            kernel=_kernel(config, "kernel", rules),
            ramdisk=_kernel(config, "ramdisk", rules),
            cmdline=kernel_arguments(config.image()),
        )
    is_pygrub = os.path.basename(loader) == PYGRUB
    if rules.confined and not is_pygrub:
        note = f"boot loader {loader} is not run here: the guest cannot reboot by itself"
        return XlBoot(note=note)
    if is_pygrub and (rules.confined or not rules.exists(loader)):
        loader = PYGRUB
    arguments, note = _arguments(config, rules)
    boot = XlBoot(bootloader=loader, bootloader_args=arguments, note=note)
    # Xen 3.0.x and RHEL 5 wrote what the boot loader had found over what the operator wanted. It
    # is not asked for again: the guest's own boot menu may say something else by then.
    if COPY.fullmatch(kernel):
        return boot
    return replace(
        boot,
        kernel=kernel,
        ramdisk=_said(config, "ramdisk"),
        cmdline=kernel_arguments(config.image()),
    )


def _kernel(config: DomainConfig, key: str, rules: GuestRules) -> str:
    path = _said(config, key)
    return rules.kernel(config.name, path) if path else ""


def _arguments(config: DomainConfig, rules: GuestRules) -> tuple[tuple[str, ...], str]:
    """Return the boot loader's arguments, and a note if some are left out."""
    text = config.text("bootloader_args")
    try:
        said = shlex.split(text)
    except ValueError as error:
        raise DomainError(config.name, f"bootloader_args {text}: {error}") from error
    allowed = [word for word in said if not rules.confined or ARGUMENT.fullmatch(word)]
    refused = shlex.join(word for word in said if word not in allowed)
    note = f"the boot loader's arguments {refused} are left out here" if refused else ""
    return tuple(allowed), note


def _said(config: DomainConfig, key: str) -> str:
    return sxp.child_text(config.image(), key)
