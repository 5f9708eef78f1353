"""A PV guest whose kernel is in its disk: pygrub finds it, also where the guest has moved to."""

from __future__ import annotations

from tests.lab import chapter
from tests.lab.guests import Kind, counts, migrate
from tests.lab.oldwire import KERNEL, count
from tests.lab.recipe import QUICK
from tests.lab.session import Host, Session, matching, until

DISK = f"{chapter.IMAGES}/grubguest.dsk"
CONFIG = f"""\
name = "grubguest"
memory = 96
bootloader = "/usr/bin/pygrub"
disk = ["file:{DISK},xvda,r"]
on_crash = "preserve"
"""
MENU = f"""\
default 0
timeout 0
title a guest that counts
root (hd0)
kernel /boot/vmlinux console=hvc0 {QUICK}
initrd /boot/ramdisk
"""
GUEST = Kind("grubguest", CONFIG, "xm create", count)


def walk(session: Session) -> None:
    """Create the guest, move it, and have it boot again there."""
    seven, eight = session.hosts
    with session.step("grubguest: create, by pygrub"):
        if "nfs" not in eight.ask(f"findmnt -n -o FSTYPE {chapter.IMAGES}"):
            chapter.share(session)
        create(eight)
    migrate(session, GUEST, eight, seven)
    with session.step("grubguest: xm reboot"):
        before = boots(seven)
        said = seven.run(f"xm reboot -w {GUEST.name}")
        matching(rf"^Domain {GUEST.name} rebooted$", said, "what xm reboot says")
        until(lambda: boots(seven) > before, "the guest's kernel has booted again")
        counts(seven, GUEST, 0)
        seven.run(f"xm list; xm destroy {GUEST.name}; rm {DISK}")


def boots(host: Host) -> int:
    """Return how often the guest's kernel has booted, by its console here."""
    return int(host.ask(f"grep -c ^BOOTED /var/log/xen/console/guest-{GUEST.name}.log") or 0)


def create(host: Host) -> None:
    """Make the guest's disk, with kernel and boot menu in it, and start the guest."""
    host.run(
        f"mkdir -p grub/boot/grub; cp {KERNEL}/vmlinux {KERNEL}/ramdisk grub/boot;"
        f" cat >grub/boot/grub/menu.lst <<'end'\n{MENU}end"
    )
    host.run(f"mke2fs -q -t ext2 -d grub {DISK} 90M && rm -r grub; ls -l {DISK}")
    host.run(f"cat >{GUEST.name}.cfg <<'end'\n{CONFIG}end")
    host.run(f"time {GUEST.create} {GUEST.name}.cfg")
    counts(host, GUEST, 0)
