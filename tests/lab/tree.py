"""The lab's changes to a tree of Debian: domain 0's, and the small one of testvm1."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import bootsector
from tests.lab.recipe import ADDRESS, DISABLED, FILES, HOSTS, MASKED, NO_MODULES

if TYPE_CHECKING:
    from tests.lab.build import Image

GUEST_FILES = "var/lib/xen/images"  # where a received configuration may name a kernel
GUEST_COMMANDS = (
    "cat", "date", "df", "echo", "hostname", "ifconfig", "killall", "ls", "mount", "poweroff",
    "sh", "sleep", "sync", "touch", "uname", "wc",
)  # fmt: skip
GUEST_PROGRAMS = ("usr/bin/xenstore-read",)


def kernel_version(root: Path) -> str:
    """Return the version of the one kernel in a tree."""
    (path,) = (root / "lib/modules").iterdir()
    return path.name


def write_packages(root: Path, target: Path) -> None:
    """Write down every package of domain 0 with its version, unpacked ones first."""
    listed = subprocess.run(
        ["chroot", str(root), "dpkg-query", "-W", "-f", "${Package} ${Version}\n"],
        check=True,
        capture_output=True,
        text=True,
    )
    target.write_text((root / "boot/lab/unpacked").read_text() + listed.stdout)


def write_kernels(root: Path, image: Image) -> None:
    """Take kernel and hypervisors out of the tree, unpacked: nothing is, inside an emulator."""
    for name, source in (("xen", "xen-4.17-amd64.gz"), ("xen-shadow", "lab/xen-shadow.gz")):
        path, target = root / "boot" / source, image.directory / name
        target.unlink(missing_ok=True)
        if path.exists():
            target.write_bytes(gzip.decompress(path.read_bytes()))
    packed = (root / f"boot/vmlinuz-{kernel_version(root)}").read_bytes()
    image.vmlinux.write_bytes(_vmlinux(packed))


def _vmlinux(packed: bytes) -> bytes:
    """Return the ELF file in a bzImage; see the kernel's Documentation/x86/boot.rst."""
    sectors = packed[0x1F1] or 4
    offset, length = struct.unpack_from("<II", packed, 0x248)
    begin = (sectors + 1) * 512 + offset
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed[begin : begin + length])


def customise(root: Path, image: Image) -> None:
    """Make the tree a domain 0 of the lab."""
    modules = root / "lib/modules" / kernel_version(root)
    for name in NO_MODULES:
        shutil.rmtree(modules / "kernel" / name, ignore_errors=True)
    shutil.rmtree(root / "boot")
    subprocess.run(["chroot", str(root), "depmod", modules.name], check=True)
    _copy(image.vmlinux, root / GUEST_FILES / "vmlinux")
    _copy(image.guest_ramdisk, root / GUEST_FILES / "ramdisk")
    bootsector.write(root / GUEST_FILES / "counter.dsk")
    for name in ("agent.py", "net"):
        _copy(FILES / name, root / "usr/local/lib/lab" / name)
    _units(root)
    _settings(root)


def _units(root: Path) -> None:
    units = root / "etc/systemd/system"
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    for name in ("lab-agent.service", "lab-net.service"):
        _copy(FILES / name, units / name)
        (wanted / name).symlink_to(f"../{name}")
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    for name in DISABLED:
        for link in units.glob(f"*.wants/{name}"):
            link.unlink()


def _settings(root: Path) -> None:
    hosts = "".join(f"{ADDRESS.format(number)} {name}\n" for number, name in HOSTS.items())
    texts = {
        "etc/hosts": f"127.0.0.1 localhost\n{hosts}",
        "etc/hostname": "dom0\n",
        "etc/machine-id": "",
        "etc/fstab": "/dev/vda / ext4 rw,noatime 0 0\n",
        "etc/exports": "/var/lib/libvirt/images  *(rw,async,no_root_squash)\n",
        # Emulated, and perhaps on a busy machine: nothing here is late.
        "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStartSec=30min\n",
        "etc/systemd/system/xen.service.d/lab.conf": "[Service]\nTimeoutSec=30min\n",
    }
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for directory in ("var/log/xen/console", "var/lib/libvirt/images"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    with open(root / "etc/default/xen", "a") as file:
        file.write('XENCONSOLED_ARGS="--log=guest --log-dir=/var/log/xen/console"\n')


def write_guest(root: Path, guest: Path) -> None:
    """Make testvm1's tree: busybox, a reader of xenstore, and the chapter's script."""
    for name in ("bin", "sbin", "dev", "proc", "sys", "tmp", "root", "var/tmp", "etc"):
        (guest / name).mkdir(parents=True)
    _copy(root / "bin/busybox", guest / "bin/busybox")
    for name in GUEST_COMMANDS:
        (guest / "bin" / name).symlink_to("busybox")
    (guest / "sbin/poweroff").symlink_to("/bin/busybox")
    for name in GUEST_PROGRAMS:
        for path in (name, *_libraries(root, name)):
            _copy(root / path, guest / path)
        (guest / "bin" / Path(name).name).symlink_to(f"/{name}")
    _copy(FILES / "testvm1-init", guest / "sbin/init")
    _copy(FILES / "doit", guest / "root/doit")


def _libraries(root: Path, program: str) -> list[str]:
    listed = subprocess.run(
        ["chroot", str(root), "ldd", f"/{program}"], check=True, capture_output=True, text=True
    )
    words = [word for line in listed.stdout.splitlines() for word in line.split()]
    return [word.lstrip("/") for word in words if word.startswith("/")]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    os.chmod(target, 0o755)
