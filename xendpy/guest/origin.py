"""Where a kept configuration came from: what another host claims stays a claim.

On arrival a guest's configuration is held against this host's rules, and it is the received one
that is kept. So the kept one says that it was received, and is held against them again whenever
the guest is started from it.
"""

from __future__ import annotations

from xendpy import sxp
from xendpy.guest.domain import DomainConfig

KEY = "xendpy_received"


def as_received(config: DomainConfig) -> DomainConfig:
    """Return the configuration with the mark of one that another host sent."""
    if is_received(config):
        return config
    return DomainConfig.from_sxp([*config.tree, [KEY, "1"]])


def is_received(config: DomainConfig) -> bool:
    """Say whether it has the mark, whatever value a peer may have given that key."""
    return sxp.child(config.tree, KEY) is not None
