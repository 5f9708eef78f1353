"""Guests that bring their managed configuration along: `xm migrate -c`, `change_home_server`.

Source: XendDomain.py and XendCheckpoint.py, Xen 4.0 - 4.4: the configuration on the wire says
`(change_home_server True)`, by which the receiver knows the guest as managed, and the sender
forgets it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from xendpy.errors import XendError
from xendpy.guest.domain import DomainConfig
from xendpy.guest.origin import as_received

log = logging.getLogger(__name__)

KEY = "change_home_server"


def with_home(config: DomainConfig, *, moves: bool) -> DomainConfig:
    """Return the configuration to send, which says whether the guest's home moves."""
    said = config.text(KEY)
    if said == str(moves) or not (said or moves):
        return config
    return config.with_values(change_home_server=str(moves))


def home_of(config: DomainConfig) -> str:
    """Return the configuration as text if the guest is to be managed here, else nothing."""
    return config.encode().decode("latin-1") if config.text(KEY) == "True" else ""


def settle(home: str, put: Callable[[DomainConfig], None]) -> None:
    """Have a guest managed here that is this host's from now on; `home` as `home_of` gave it.

    The guest is here and runs, whatever becomes of that: a failure is logged.
    """
    if not home:
        return
    config = DomainConfig.parse(home.encode("latin-1"))
    try:
        put(as_received(with_home(config, moves=False)))
    except (XendError, OSError) as error:
        log.warning("domain %s came to stay, and is not managed here: %s", config.name, error)
