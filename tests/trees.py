"""The tree that virt-install installs from: what tells it which system is in there."""

from __future__ import annotations

TREEINFO = """\
[general]
family = Red Hat Enterprise Linux
version = 5.3
arch = x86_64

[images-xen]
kernel = images/xen/vmlinuz
initrd = images/xen/initrd.img
"""
