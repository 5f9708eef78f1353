"""Where things are: xend's own paths, all of them below one root.

The root is `/` on a real host. `XENDPY_ROOT` or `--root DIR` puts every path below DIR, so that
several daemons live side by side and need no privileges. No I/O here, and nothing imported that
`xm` would have to wait for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """xend's paths below `root`; `config_file` may be chosen on its own (`XEND_CONFIG`)."""

    root: Path = Path("/")
    config_override: Path | None = None

    @classmethod
    def choose(
        cls,
        *,
        root: str | None = None,
        config: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Paths:
        """Return the paths that the command line, then the environment, ask for."""
        chosen_root = root or environ.get("XENDPY_ROOT") or "/"
        chosen_config = config or environ.get("XEND_CONFIG")
        return cls(
            Path(chosen_root).absolute(),
            Path(chosen_config).absolute() if chosen_config else None,
        )

    def below(self, path: str) -> Path:
        """Return an absolute `path` as it is found below the root."""
        return self.root / path.lstrip("/")

    @property
    def config_file(self) -> Path:
        return self.config_override or self.below("etc/xen/xend-config.sxp")

    @property
    def config_dir(self) -> Path:
        return self.below("etc/xen")

    @property
    def auto_dir(self) -> Path:
        return self.below("etc/xen/auto")

    @property
    def run_dir(self) -> Path:
        return self.below("var/run/xend")

    @property
    def xmlrpc_socket(self) -> Path:
        return self.run_dir / "xmlrpc.sock"

    @property
    def libvirt_dir(self) -> Path:
        return self.below("run/libvirt")

    @property
    def pid_file(self) -> Path:
        return self.below("var/run/xend.pid")

    @property
    def state_dir(self) -> Path:
        return self.below("var/lib/xend")

    @property
    def relocation_socket(self) -> Path:
        return self.state_dir / "relocation-socket"

    @property
    def store_dir(self) -> Path:
        return self.state_dir / "store"

    @property
    def log_dir(self) -> Path:
        return self.below("var/log/xen")
