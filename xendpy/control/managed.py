"""Managed domains: guests that the daemon knows even while they do not run.

Source: XendDomain.py, Xen 3.0.4 - 4.4: `xend-domains-path`/UUID/config.sxp, one s-expression each.
A directory without a readable configuration is left alone, and said in the log.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from xendpy.errors import DomainError, DomainExists, SxpError
from xendpy.guest.domain import DomainConfig, DomainState, DomainSummary
from xendpy.hypervisor.durable import Durable

_FILE = "config.sxp"
_CHECKPOINT = "checkpoint.chk"
_MAX_CONFIG = 1 << 20  # bytes

log = logging.getLogger(__name__)


class ManagedDomains:
    """The managed configurations below `directory`, by uuid; every change is on disk first.

    Any thread may call. Calls that change something block on the disk; those that ask see a
    snapshot.
    """

    def __init__(self, directory: Path, durable: Durable | None = None) -> None:
        self._directory = directory
        self._durable = durable or Durable()
        self._configs: dict[str, DomainConfig] = {}
        self._turn = threading.Lock()

    def load(self) -> None:
        """Read what is there; nothing is created."""
        found: dict[str, DomainConfig] = {}
        for path in sorted(self._directory.glob(f"*/{_FILE}")):
            config = _read(path)
            if config is not None:
                found[config.uuid] = config
        self._configs = found

    def all(self) -> list[DomainConfig]:
        """Return all configurations, by name."""
        return sorted(self._configs.values(), key=lambda config: config.name)

    def get(self, uuid: str) -> DomainConfig | None:
        return self._configs.get(uuid)

    def by_name(self, name: str) -> DomainConfig | None:
        return next((item for item in self._configs.values() if item.name == name), None)

    def put(self, config: DomainConfig) -> None:
        """Keep a configuration, in place of the one with its uuid.

        Raises:
            DomainExists: another managed domain has the name.
            OSError: it could not be written; the old one stays.
        """
        with self._turn:
            other = self.by_name(config.name)
            if other is not None and other.uuid != config.uuid:
                raise DomainExists(config.name, f"VM name '{config.name}' already exists")
            place = self._directory / config.uuid
            self._durable.mkdir(place)
            self._durable.write_file(place / _FILE, config.encode())
            self._configs = {**self._configs, config.uuid: config}

    def remove(self, uuid: str) -> None:
        """Forget a configuration, and its directory; nothing happens if there is none."""
        with self._turn:
            if uuid in self._configs:
                self._durable.remove_tree(self._directory / uuid)
                self._configs = {key: item for key, item in self._configs.items() if key != uuid}

    def checkpoint(self, uuid: str) -> Path:
        """Return where `suspend` puts the memory of a managed domain, and `resume` finds it."""
        return self._directory / uuid / _CHECKPOINT


def inactive(config: DomainConfig) -> DomainSummary:
    """Return a managed domain that does not run, as `list` shows it: no id, no state, no time."""
    return DomainSummary(
        domid=None,
        uuid=config.uuid,
        name=config.name,
        state=DomainState.SHUTDOWN,
        memory_mib=config.memory_mib,
        maxmem_mib=config.maxmem_mib,
        vcpus=config.vcpus,
        online_vcpus=config.online_vcpus,
        cpu_time_s=0.0,
        start_time_s=0.0,
        config=config,
    )


def _read(path: Path) -> DomainConfig | None:
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_CONFIG + 1)
        if len(raw) > _MAX_CONFIG:
            raise DomainError("", f"larger than {_MAX_CONFIG} bytes")
        config = DomainConfig.parse(raw)
    except (OSError, SxpError, DomainError) as error:
        log.warning("managed domain %s is not read: %s", path, error)
        return None
    if config.uuid != path.parent.name:
        log.warning("managed domain %s is not read: it says uuid %s", path, config.uuid)
        return None
    return config
