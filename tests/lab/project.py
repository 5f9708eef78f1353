"""The project in a domain 0, as an operator without a network installs it.

`make install` runs in domain 0's tree before that becomes a disk: natively it takes seconds, in
an emulator minutes.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.lab.session import Session, matching

TOP = Path(__file__).parents[2]
SOURCE = (
    "LICENSE", "Makefile", "README.md", "pyproject.toml", "etc", "systemd", "tests", "xendpy",
)  # fmt: skip
# What domain 0 has from Debian; pip takes the rest from the wheels, and would take these too.
FROM_DEBIAN = ("numpy-", "uvloop-", "cryptography-", "cffi-", "pycparser-")
FOR_TESTS = ("hypothesis>=6.100", "pytest>=8", "pytest-asyncio>=0.24", "pytest-timeout>=2.2")
LIBRARY = "/root/testlib"
CONFIG = """\
(xend-relocation-server yes)
(xend-relocation-port 8002)
(xend-relocation-address '')
(xend-relocation-hosts-allow '')
(xendpy-libvirt-tcp-server yes)
"""
INSTALL = f"""\
set -eu
cd /root/xendpy
make install WHEELS=/root/wheels
cat >>/etc/xen/xend-config.sxp <<'end'
{CONFIG}end
systemctl enable xend
/usr/lib/xendpy/bin/python -m pip install --quiet --disable-pip-version-check --no-index \
    --root-user-action=ignore --find-links /root/wheels --upgrade --target {LIBRARY} \
    {shlex.join(FOR_TESTS)}
/usr/lib/xendpy/bin/python -m compileall -q /root/xendpy {LIBRARY}
"""


def files() -> Iterator[Path]:
    """Yield every file of the source tree that goes into domain 0."""
    for name in SOURCE:
        path = TOP / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in found if file.is_file() and "__pycache__" not in file.parts)


def install(root: Path, cache: Path) -> None:
    """Install into a domain 0's tree; the log stays in it as /root/install.log.

    Raises:
        subprocess.CalledProcessError: a step failed.
    """
    _copy(root, _wheels(cache))
    # An earlier installation's configuration is the operator's, and would be kept.
    (root / "etc/xen/xend-config.sxp").unlink(missing_ok=True)
    log = root / "root/install.log"
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
    try:
        with open(log, "wb") as said:
            subprocess.run(
                ["chroot", str(root), "sh", "-c", INSTALL],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment,
            )
    except subprocess.CalledProcessError:
        print(log.read_text(errors="replace"))
        raise


def _copy(root: Path, wheels: Path) -> None:
    for name in ("xendpy", "wheels"):
        shutil.rmtree(root / "root" / name, ignore_errors=True)
    for file in files():
        target = root / "root/xendpy" / file.relative_to(TOP)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    (root / "root/wheels").mkdir()
    for wheel in wheels.glob("*.whl"):
        if not wheel.name.startswith(FROM_DEBIAN):
            shutil.copy(wheel, root / "root/wheels")


def _wheels(cache: Path) -> Path:
    """Return the directory of wheels; what an index is needed for is fetched once."""
    wheels = cache / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.glob("xendpy-*.whl"):
        old.unlink()
    done = wheels / ".fetched"
    wanted = "\n".join(((TOP / "pyproject.toml").read_text(), *FOR_TESTS))
    if not done.exists() or done.read_text() != wanted:
        subprocess.run(["make", "-C", TOP, "wheels", f"WHEELS={wheels}"], check=True)
        _wheel(wheels, *FOR_TESTS)
        done.write_text(wanted)
    else:
        _wheel(wheels, "--no-deps", str(TOP))
    return wheels


def _wheel(wheels: Path, *words: str) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--wheel-dir", wheels, *words], check=True)


def show(session: Session) -> None:
    """Show what came of it on both hosts."""
    for host in session.hosts:
        host.run("cat install.log; xend --version; ls -l /usr/sbin/xend /usr/sbin/xm")
        host.run("systemctl --no-pager status xend")
        matching("driver xl, ready", host.run("journalctl -u xend | tail -n 2"), "the log")
