"""Build what the lab boots, once: the disk of domain 0, kernels, hypervisors, a guest's disk.

Everything lies below one directory outside of the source tree; what the recipe that is written
there still describes is not built again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.lab import project, ramdisk, tree
from tests.lab.errors import LabError
from tests.lab.recipe import DISK_BYTES, DOM0, FILES, OUTER, SHARE_BYTES, SUITE, TESTVM1_BYTES

APT_SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")


class Image:
    """The files of a built lab."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root_tar = directory / "rootfs.tar"
        self.tree = directory / "root"
        self.vmlinux = directory / "vmlinux"
        self.dom0_ramdisk = directory / "ramdisk.dom0"
        self.guest_ramdisk = directory / "ramdisk.guest"
        self.dom0_disk = directory / "dom0.ext4"
        self.share_disk = directory / "images.ext4"
        self.packages = directory / "packages.txt"
        self._hypervisors = (directory / "xen-shadow", directory / "xen")

    @property
    def hypervisor(self) -> Path:
        """The one that can move running PV guests, if the archive had it."""
        return next(path for path in self._hypervisors if path.exists())


def build(cache: Path) -> Image:
    """Return the image, built anew where the recipe has changed.

    Raises:
        LabError: a tool is missing, or failed.
    """
    if os.geteuid():
        raise LabError("building the lab takes root: mmdebstrap and chroot")
    missing = [package for package in OUTER if not _installed(package)]
    if missing:
        raise LabError(f"please install (apt-get install) {' '.join(missing)}")
    cache.mkdir(parents=True, exist_ok=True)
    image = Image(cache)
    _once(cache / "rootfs.recipe", _digest([*DOM0, SUITE], [FILES / "hook"]), lambda: _root(image))
    sources = [*sorted(FILES.iterdir()), *sorted(Path(__file__).parent.glob("[brt]*.py"))]
    made = str(image.root_tar.stat().st_mtime_ns)
    _once(cache / "image.recipe", _digest([made], sources), lambda: _tree(image))
    made = str((cache / "image.recipe").stat().st_mtime_ns)
    _once(cache / "disk.recipe", _digest([made], project.files()), lambda: _disk(image))
    return image


def _installed(package: str) -> bool:
    found = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status}", package], capture_output=True, text=True
    )
    return found.stdout == "installed"


def _digest(words: Iterable[str], files: Iterable[Path]) -> str:
    digest = hashlib.sha256("\0".join(words).encode())
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _once(stamp: Path, recipe: str, make: object) -> None:
    if stamp.exists() and stamp.read_text() == recipe:
        return
    stamp.unlink(missing_ok=True)
    assert callable(make)
    make()
    stamp.write_text(recipe)


def run(*argv: str | Path, **more: object) -> None:
    """Run a command; its output is shown, its failure is the lab's."""
    try:
        subprocess.run([str(word) for word in argv], check=True, **more)  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError) as error:
        raise LabError(str(error)) from error


def _root(image: Image) -> None:
    """Install Debian into a tar file; the archives are those that this machine uses."""
    print(f"building domain 0 from Debian {SUITE} ...", flush=True)
    sources = next(path for path in APT_SOURCES if Path(path).exists())
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
    run(
        "mmdebstrap", "--mode=root", "--variant=minbase", "--quiet",
        '--aptopt=Apt::Install-Recommends "false"', *excluded, f"--include={','.join(DOM0)}",
        f"--customize-hook=sh {FILES / 'hook'} \"$1\"", SUITE, image.root_tar, sources,
    )  # fmt: skip


def _tree(image: Image) -> None:
    """Make domain 0's tree from that tar file, and what is not part of it."""
    print("building kernels, ramdisks and domain 0's tree ...", flush=True)
    place = image.tree
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    run("tar", "-C", place, "-xf", image.root_tar)
    tree.write_packages(place, image.packages)
    tree.write_kernels(place, image)
    ramdisk.write_dom0(place, image.dom0_ramdisk)
    ramdisk.write_guest(place, image.guest_ramdisk)
    _guest_disk(place, image)
    tree.customise(place, image)


def _disk(image: Image) -> None:
    """Install the project into the tree, and make that domain 0's disk."""
    print("installing the project, building domain 0's disk ...", flush=True)
    try:
        project.install(image.tree, image.directory)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LabError(f"the project was not installed: {error}") from error
    _ext4(image.tree, image.dom0_disk, DISK_BYTES)


def _guest_disk(place: Path, image: Image) -> None:
    """Make testvm1's disk, and the disk with it that is to be exported."""
    share = image.directory / "share"
    shutil.rmtree(share, ignore_errors=True)
    share.mkdir()
    guest = image.directory / "testvm1"
    shutil.rmtree(guest, ignore_errors=True)
    tree.write_guest(place, guest)
    _ext4(guest, share / "testvm1.dsk", TESTVM1_BYTES)
    _ext4(share, image.share_disk, SHARE_BYTES)
    shutil.rmtree(guest)
    shutil.rmtree(share)


def _ext4(source: Path, target: Path, size: int) -> None:
    target.unlink(missing_ok=True)
    with open(target, "wb") as file:
        file.truncate(size)
    features, lazily = "^metadata_csum,^64bit", "lazy_itable_init=1,lazy_journal_init=1"
    run("mkfs.ext4", "-q", "-F", "-O", features, "-E", lazily, "-d", source, target)
