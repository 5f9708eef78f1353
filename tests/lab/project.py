"""The project in a domain 0, as an operator without a network installs it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

from tests.lab.build import LabError
from tests.lab.session import Host, Session

TOP = Path(__file__).parents[2]
SOURCE = (
    "LICENSE", "Makefile", "README.md", "pyproject.toml", "etc", "systemd", "tests", "xendpy",
)  # fmt: skip
# What domain 0 has from Debian; pip takes the rest from the wheels, and would take these too.
FROM_DEBIAN = ("numpy-", "uvloop-", "cryptography-", "cffi-", "pycparser-")
FOR_TESTS = ("pytest>=8", "pytest-asyncio>=0.24", "pytest-timeout>=2.2")
CONFIG = """\
(xend-relocation-server yes)
(xend-relocation-port 8002)
(xend-relocation-address '')
(xend-relocation-hosts-allow '')
"""
SECONDS = 1800.0


def pack(cache: Path) -> Path:
    """Make the wheels, and one archive of them and of the source tree."""
    wheels = cache / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.glob("xendpy-*.whl"):
        old.unlink()
    _make(wheels)
    archive = cache / "project.tar"
    with tarfile.open(archive, "w") as tar:
        for name in SOURCE:
            tar.add(TOP / name, f"xendpy/{name}", filter=_without_caches)
        for wheel in sorted(wheels.glob("*.whl")):
            if not wheel.name.startswith(FROM_DEBIAN):
                tar.add(wheel, f"wheels/{wheel.name}")
    return archive


def _make(wheels: Path) -> None:
    """Fill the directory; what an index is needed for is fetched once."""
    done = wheels / ".fetched"
    wanted = (TOP / "pyproject.toml").read_text()
    try:
        if not done.exists() or done.read_text() != wanted:
            subprocess.run(["make", "-C", TOP, "wheels", f"WHEELS={wheels}"], check=True)
            _wheel(wheels, *FOR_TESTS)
            done.write_text(wanted)
        else:
            _wheel(wheels, "--no-deps", str(TOP))
    except subprocess.CalledProcessError as error:
        raise LabError(str(error)) from error


def _wheel(wheels: Path, *words: str) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--wheel-dir", wheels, *words], check=True)


def _without_caches(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in info.name else info


def install(session: Session, archive: Path) -> None:
    """Install into both hosts, side by side, and show what came of it."""
    for host in session.hosts:
        host.machine.put(archive, "/root/project.tar")
        host.ask(
            "tar -xf project.tar && rm project.tar; (cd xendpy;"
            " make install WHEELS=/root/wheels; echo $? >/root/installed) >/root/install.log 2>&1"
            " </dev/null &"
        )
    for host in session.hosts:
        _show(host)


def _show(host: Host) -> None:
    host.run(
        "cd xendpy; make install WHEELS=/root/wheels  # begun above\n"
        f"n=0; while [ ! -e /root/installed ] && [ $n -lt {SECONDS:g} ]; do"
        " sleep 1; n=$((n+1)); done; cat /root/install.log; exit $(cat /root/installed)",
        timeout_s=SECONDS + 60,
    )
    host.run(f"cat >>/etc/xen/xend-config.sxp <<'end'\n{CONFIG}end")
    host.run("xend --version; ls -l /usr/sbin/xend /usr/sbin/xm")
