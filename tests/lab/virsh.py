"""The chapter with the stock clients of libvirt: virsh and virt-install, on real Xen."""

from __future__ import annotations

from tests.lab.oldwire import KERNEL, config, counts
from tests.lab.recipe import QUICK
from tests.lab.session import Host, Session, check, matching, until
from tests.trees import TREEINFO

GUEST, INSTALLED = "vguest", "vinstalled"
VIRSH = "virsh -c xen:///"
TREE = "/root/tree"
# The chapter's line, with what today's release wants besides, and without a console to look at.
LINE = (
    f"virt-install -p -f /var/lib/xen/images/{INSTALLED}.dsk -s 0.01 -n {INSTALLED} --vnc -r 112"
    f" -l {TREE} -b xenbr1 --osinfo detect=on,require=off --noautoconsole"
    f" -x 'console=hvc0 {QUICK}'"
)


def walk(session: Session) -> None:
    """Do with virsh what the chapter does with it."""
    seven, eight = session.hosts
    with session.step("virsh start, list, save, restore"):
        begin(eight)
    for source, target in ((eight, seven), (seven, eight)):
        with session.step(f"virsh migrate --live {source.name} -> {target.name}"):
            migrate(source, target)
    with session.step("virsh shutdown"):
        eight.run(f"{VIRSH} shutdown {GUEST}")
        until(lambda: GUEST not in eight.guests(), "the guest is gone")
        eight.run(f"{VIRSH} undefine {GUEST}; {VIRSH} list --all")


def begin(host: Host) -> None:
    """Define a guest, start it, save it and bring it back."""
    host.run(f"cat >{GUEST}.cfg <<'end'\n{config(GUEST)}end")
    host.run(f"xm new {GUEST}.cfg")
    matching(rf"{GUEST} +shut off", host.run(f"{VIRSH} list --all"), "virsh list")
    host.run(f"{VIRSH} start {GUEST}")
    saved = counts(host, GUEST)
    matching(rf"{GUEST} +(idle|running)", host.run(f"{VIRSH} list"), "virsh list")
    host.run(f"time {VIRSH} save {GUEST} {GUEST}.sav")
    check(GUEST not in host.guests(), "the guest is still there after virsh save")
    host.run(f"{VIRSH} domstate --reason {GUEST}")
    host.run(f"time {VIRSH} restore {GUEST}.sav; rm {GUEST}.sav")
    counts(host, GUEST, saved)


def migrate(source: Host, target: Host) -> None:
    """Migrate the guest, see it there and only there, counting."""
    before = counts(source, GUEST)
    source.run(
        f"time {VIRSH} migrate --live --verbose {GUEST} xen+tcp://{target.name}/system",
        timeout_s=1800,
    )
    check(GUEST not in source.guests(), f"the guest is still on {source.name}")
    matching(rf"{GUEST} +(idle|running)", target.run(f"{VIRSH} list"), "virsh list")
    counts(target, GUEST, before)


def install(host: Host) -> None:
    """Install a guest from a tree of this host: its kernel boots, and counts."""
    host.run(
        f"mkdir -p {TREE}/images/xen; ln -sf {KERNEL}/vmlinux {TREE}/images/xen/vmlinuz;"
        f" ln -sf {KERNEL}/ramdisk {TREE}/images/xen/initrd.img"
    )
    host.run(f"cat >{TREE}/.treeinfo <<'end'\n{TREEINFO}end")
    host.run(f"time {LINE}", timeout_s=1800)
    host.run(f"xm list; {VIRSH} list; xl list; ls -l /var/lib/xen /var/lib/xen/images")
    counts(host, INSTALLED)
    host.run(f"{VIRSH} destroy {INSTALLED}; {VIRSH} undefine {INSTALLED}; {VIRSH} list --all")
    check(INSTALLED not in host.guests(), "the guest is left")
