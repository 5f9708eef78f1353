"""What only some drivers can do, beyond the driver interface.

A driver that can has a method of the name, which blocks and takes the guest first:

    set_memory(domain, mib)     balloon to a target
    set_maxmem(domain, mib)     change the limit
    set_vcpus(domain, count)    change the online vcpus
    send_sysrq(domain, key)     press a magic SysRq key
    running(domain)             the guest's process; its `console()` is what it has printed
    hypervisor_log() -> str     the hypervisor's console ring
    watch_ends(ended)           call `ended(domain, reason)`, in a thread of the driver's, for each
                                guest that ends by itself: poweroff, reboot or crash
    set_aside(domain, name, uuid)  give a guest that has ended another name and uuid
    partials(), discard_partial(label)  the guests that came in part
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xendpy.errors import Unsupported
from xendpy.hypervisor.base import Hypervisor

ABILITIES = frozenset(
    (
        "set_memory",
        "set_maxmem",
        "set_vcpus",
        "send_sysrq",
        "running",
        "hypervisor_log",
        "watch_ends",
        "set_aside",
        "partials",
        "discard_partial",
    )
)


def ability(hypervisor: Hypervisor, name: str, what: str) -> Callable[..., Any]:
    """Return the driver's method `name`; `what` it does is for the text of the refusal.

    Raises:
        Unsupported: the driver has none.
    """
    assert name in ABILITIES
    method = getattr(hypervisor, name, None)
    if method is None:
        raise Unsupported(f"the {hypervisor.name} driver cannot {what}")
    return method  # type: ignore[no-any-return]  # its own class declares it
