"""Where systemd runs the daemon, `xend start` and `xend stop` speak to systemd.

A daemon that was started beside its unit is none of the unit's: systemd would not watch it, and
`systemctl start` would find the ports taken. Debian's init scripts hand over in the same way
(/lib/lsb/init-functions.d/40-systemd).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from xendpy.paths import Paths

NAME: Final = "xend.service"
BOOTED: Final = Path("/run/systemd/system")  # sd_booted(3)
PROC: Final = Path("/proc")
# systemd.unit(5), the first one counts.
PLACES: Final = tuple(
    Path(place) / "systemd/system"
    for place in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
)


def is_in_charge(paths: Paths, environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether the daemon of `paths` is the unit's to start, and we are not the unit's own.

    A root or a configuration file of one's own means another daemon. A unit that is masked, a link
    to /dev/null, is in charge of nothing.
    """
    if str(paths.root) != "/" or paths.config_override is not None:
        return False
    if not _is_here() or "NOTIFY_SOCKET" in environ or owns("self"):
        return False
    files = [place / NAME for place in PLACES]
    return next((file.is_file() for file in files if os.path.lexists(file)), False)


def owns(pid: int | str) -> bool:
    """Say whether a process is one of the unit's, and systemd can be asked about it."""
    try:
        groups = (PROC / str(pid) / "cgroup").read_text()
    except OSError:
        return False
    return _is_here() and any(NAME in line.split("/") for line in groups.splitlines())


def _is_here() -> bool:
    return BOOTED.is_dir() and shutil.which("systemctl") is not None


def ask(verb: str) -> int:
    """Have systemd start or stop the unit, and wait; it says itself what went wrong."""
    return subprocess.run(["systemctl", verb, NAME], check=False).returncode
