"""The initial ramdisks of domain 0 and of guests: busybox, a few modules, a script."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.lab.recipe import DOM0_MODULES, FILES, GUEST_MODULES
from tests.lab.tree import kernel_version


def write_dom0(root: Path, target: Path) -> None:
    """Write domain 0's."""
    _write(root, FILES / "dom0-init", DOM0_MODULES, target)


def write_guest(root: Path, target: Path) -> None:
    """Write that of every guest."""
    _write(root, FILES / "guest-init", GUEST_MODULES, target)


def _write(root: Path, init: Path, modules: Iterable[str], target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for directory in ("bin", "dev", "modules", "new", "proc", "sys", "tmp"):
            (place / directory).mkdir()
        shutil.copy(root / "bin/busybox", place / "bin/busybox")
        shutil.copy(init, place / "init")
        (place / "init").chmod(0o755)
        paths = _in_order(root, modules)
        for path in paths:
            shutil.copy(path, place / "modules" / path.name)
        (place / "modules/order").write_text("".join(f"{path.name}\n" for path in paths))
        names = ["."] + [str(path.relative_to(place)) for path in sorted(place.rglob("*"))]
        packed = subprocess.run(
            ["cpio", "--create", "--format=newc", "--quiet", "--owner=0:0"],
            input="\n".join(names).encode(),
            cwd=place,
            check=True,
            capture_output=True,
        )
    target.write_bytes(gzip.compress(packed.stdout, 1))


def _in_order(root: Path, wanted: Iterable[str]) -> list[Path]:
    """Return the files of modules, each after those it needs."""
    base = root / "lib/modules" / kernel_version(root)
    subprocess.run(["chroot", str(root), "depmod", base.name], check=True)
    needs: dict[str, list[str]] = {}
    for line in (base / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[Path(path).name.partition(".ko")[0]] = [path, *rest.split()]
    found: list[Path] = []
    for name in wanted:
        found += [base / path for path in reversed(needs[name])]
    return list(dict.fromkeys(found))
