"""What the lab is made of: Debian 12, its Xen, and what the project and the chapter need there."""

from __future__ import annotations

from pathlib import Path

SUITE = "bookworm"
FILES = Path(__file__).parent / "files"

# On the machine that runs QEMU.
OUTER = (
    "cpio", "e2fsprogs", "mmdebstrap", "python3", "qemu-system-x86", "qemu-utils", "seabios",
    "tar", "xz-utils",
)  # fmt: skip

# In domain 0.
SYSTEM = (
    "busybox-static", "dbus", "e2fsprogs", "file", "iproute2", "iputils-ping", "kmod", "lsof",
    "make", "procps", "python3", "systemd-sysv", "udev", "init-system-helpers",
)  # fmt: skip
XEN = (
    "bridge-utils", "ipxe-qemu", "qemu-system-data", "qemu-system-xen", "seabios",
    "xen-hypervisor-4.17-amd64", "xen-utils-4.17", "xen-utils-common", "xenstore-utils",
)  # fmt: skip
CHAPTER = ("libvirt-clients", "nfs-common", "nfs-kernel-server", "rpcbind", "virtinst")
PROJECT = (
    "python3-cryptography", "python3-numpy", "python3-pip", "python3-uvloop", "python3-venv",
)  # fmt: skip
DOM0 = (*SYSTEM, *XEN, *CHAPTER, *PROJECT)

# What a domain 0 in an emulator has no use for, below lib/modules/VERSION/kernel.
NO_MODULES = (
    "drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/net/wireless",
    "drivers/net/ethernet", "drivers/usb", "drivers/scsi", "drivers/ata", "drivers/staging",
    "drivers/isdn", "drivers/iio", "drivers/hwmon", "drivers/mtd", "sound",
)  # fmt: skip
DOM0_MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
GUEST_MODULES = ("xen-blkfront", "xen-netfront", "ext4", "crc32c_generic")

# For every kernel here: no self-tests of its ciphers, no walk through its page tables. A guest is
# up in less than half the time.
QUICK = "quiet mitigations=off cryptomgr.notests rodata=off"

# Units that cost minutes in an emulator and do nothing there. What domain 0 needs of its devices
# is loaded by name: nobody has to look for the others (systemd-udev-trigger).
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "getty.target", "libvirt-guests.service",
    "logrotate.timer", "man-db.timer", "nfs-blkmap.service",
    "proc-sys-fs-binfmt_misc.automount", "ssh.service", "sys-fs-fuse-connections.mount",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-binfmt.service",
    "systemd-logind.service", "systemd-networkd-wait-online.service", "systemd-pstore.service",
    "systemd-random-seed.service", "systemd-udev-trigger.service",
    "systemd-update-utmp-runlevel.service", "systemd-update-utmp.service",
    "systemd-user-sessions.service", "xendomains.service",
)  # fmt: skip
# Started by hand where the chapter wants them, and not with every host.
DISABLED = ("nfs-client.target", "nfs-server.service", "rpcbind.service", "rpcbind.socket")

HOSTS = {7: "et-virt07", 8: "et-virt08"}
ADDRESS = "192.168.77.{}"
DISK_BYTES = 4 << 30  # sparse
SHARE_BYTES = 512 << 20
TESTVM1_BYTES = 64 << 20
