"""The chapter on live migration, on real Xen: its commands, in its order."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tests.lab.recipe import QUICK
from tests.lab.session import Host, Session, check, matching, until

GUEST = "testvm1"
IMAGES = "/var/lib/libvirt/images"
DISK = f"{IMAGES}/{GUEST}.dsk"
OPTIONS = (
    "(xend-relocation-server yes)",
    "(xend-relocation-port 8002)",
    "(xend-relocation-address '')",
    "(xend-relocation-hosts-allow '')",
)
CONFIG = f"""\
name = "{GUEST}"
memory = 112
kernel = "/var/lib/xen/images/vmlinux"
ramdisk = "/var/lib/xen/images/ramdisk"
extra = "console=hvc0 {QUICK} disk"
disk = ["file:{DISK},xvda,w"]
vif = ["mac=00:16:3e:00:00:21,bridge=xenbr1"]
on_crash = "preserve"
"""
NAMED = re.compile(r"et-virt0[78]|testvm1|\(none\)")
DATED = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d [A-Z]+ \d{4}")


def walk(session: Session) -> None:
    """Do what the chapter does, and look at what came of it."""
    seven, eight = session.hosts
    with session.step("storage by NFS"):
        share(session)
    with session.step("network, configuration, service"):
        serve(session)
    with session.step("xm create"):
        begin(eight)
    with session.step("xm save, xm restore"):
        save_and_restore(eight)
    for source, target, how in ((eight, seven, "--live"), (seven, eight, "--live")):
        with session.step(f"xm migrate --live {source.name} -> {target.name}"):
            session.remark = migrate(source, target, how)
    with session.step(f"xm migrate (offline) {eight.name} -> {seven.name}"):
        migrate(eight, seven, "")
    with session.step("the script's log, and the disk"):
        session.remark = look(session)


def share(session: Session) -> None:
    """Export the directory of disks from one host, mount it on the other."""
    seven, eight = session.hosts
    eight.ask(f"umount {IMAGES}")  # an earlier walk has left it so
    seven.ask(f"systemctl stop nfs-server; umount {IMAGES}")
    seven.run(f"mkdir -p {IMAGES}; mount /dev/vdb {IMAGES} && ls -l {IMAGES}")
    seven.run("cat /etc/exports; systemctl start nfs-server && exportfs -ra && exportfs -v")
    shown = eight.run("showmount -e et-virt07")
    matching(rf"^{IMAGES} +\*$", shown, "the export list")
    eight.run(f"mount -t nfs -o vers=4.2 et-virt07:{IMAGES} {IMAGES}")
    matching(rf"et-virt07:{IMAGES} .* {IMAGES}$", eight.run(f"df {IMAGES}"), "df")
    matching("ext4", eight.run(f"file {DISK}"), "the guest's disk")
    eight.run(f"touch {IMAGES}/foo")
    seven.run(f"ls -l {IMAGES}/foo")
    eight.run(f"rm -f {IMAGES}/foo")


def serve(session: Session) -> None:
    """Verify bridges and relocation parameters, and start the relocation server."""
    for host in session.hosts:
        matching(r"^xenbr1\s.*peth1", host.run("brctl show"), "the bridge")
        shown = host.run("grep xend-relocation /etc/xen/xend-config.sxp | grep -v '#'")
        check(tuple(shown.splitlines()) == OPTIONS, "the options are not those of the chapter")
    for host in session.hosts:
        host.run("service xend restart; systemctl is-active xend")
        shown = host.run("lsof -i :8002")
        matching(r"^python\s.*\(LISTEN\)$", shown, "who listens")
        shown = host.run("xm info | grep -E '^(host|xend_config_format|free_memory|xen_version)'")
        matching(rf"^host +: {host.name}$", shown, "xm info")


def begin(host: Host) -> None:
    """Install the guest, that is: start the one that lies on the share."""
    host.run(f"cat >{GUEST}.cfg <<'end'\n{CONFIG}end")
    host.run(f"xm create {GUEST}.cfg")
    host.run("xm list")
    host.run("xl list; brctl show")
    alive(host)


def save_and_restore(host: Host) -> None:
    """Save the guest to a file and bring it back."""
    host.run(f"time xm save {GUEST} {GUEST}.sav; ls -l {GUEST}.sav")
    check(listed(host, "xm list") == [], "the guest is still there after xm save")
    check(host.guests() == [], "xl still has a guest after xm save")
    host.run(f"time xm restore {GUEST}.sav")
    check(listed(host, "xm list") == [GUEST], "the guest is not there after xm restore")
    alive(host)
    host.run(f"rm {GUEST}.sav")


def migrate(source: Host, target: Host, how: str) -> str:
    """Migrate the guest, see it there and only there, alive; return how it was moved."""
    before = told(source)
    words = " ".join(word for word in ("xm migrate", how, GUEST, target.name) if word)
    used = ""
    output = source.run(f"time {words}", status=None, timeout_s=1200)
    if how and "shadow paging" in output:
        words += " --on-no-logdirty pause"
        used = "by --on-no-logdirty pause"
        source.run(f"time {words}", timeout_s=1200)
    check(listed(source, "xm list") == [], f"the guest is still on {source.name}")
    check(listed(target, "xm list") == [GUEST], f"the guest is not on {target.name}")
    check(source.guests() == [], f"xl still has a guest on {source.name}")
    alive(target)
    check(len(told(target)) > 0 and before, "the guest's script has said nothing")
    if how and not used:
        newest = "xm migrations | awk '$2 == \"out\" {id = $1} END {print id}'"
        matching(r"^ *\d+ last ", source.run(f"xm migrations show $({newest})"), "its iterations")
    return used


def listed(host: Host, command: str) -> list[str]:
    """Show a list of guests and return their names, without domain 0."""
    lines = host.run(command).splitlines()[1:]
    return [line.split()[0] for line in lines if not line.startswith("Domain-0")]


def told(host: Host) -> list[str]:
    """Return the dates that the script has shown on this host's console of the guest."""
    return DATED.findall(host.ask(f"cat /var/log/xen/console/guest-{GUEST}.log"))


def alive(host: Host) -> None:
    """Wait until the guest's script has said something again, twice."""
    for _ in range(2):
        before = last_size(host)
        until(lambda seen=before: last_size(host) > seen, f"the script goes on on {host.name}")
    host.run(f"tail -n 4 /var/log/xen/console/guest-{GUEST}.log")


def last_size(host: Host) -> int:
    """Return the size that the script has last shown of its own log."""
    shown = host.ask(f"tail -n 50 /var/log/xen/console/guest-{GUEST}.log")
    found = re.findall(r"^-rw\S* .* (\d+) \S+ +\d+ [\d:]+ /var/tmp/\d+\.log", shown, re.MULTILINE)
    return int(found[-1]) if found else 0


def look(session: Session) -> str:
    """Shut the guest down, and read its log and check its disk from outside."""
    seven = session.seven
    seven.run(f"xm shutdown -w {GUEST}", timeout_s=1200)
    until(lambda: seven.guests() == [], "the guest is gone")
    seven.run(f"tail -n 3 /var/log/xen/console/guest-{GUEST}.log")
    seven.run(f"e2fsck -f -n {DISK}", timeout_s=1200)
    (name,) = re.findall(r"\d+\.log", seven.run(f"debugfs -R 'ls /var/tmp' {DISK} 2>/dev/null"))
    lines = seven.ask(f"debugfs -R 'cat /var/tmp/{name}' {DISK} 2>/dev/null").splitlines()
    seven.ask(f"debugfs -w -R 'rm /var/tmp/{name}' {DISK}")  # the next walk begins its own
    return judge(lines)


def judge(lines: Sequence[str]) -> str:
    """Show where the log changes hosts; return how many entries it has.

    Raises:
        StepFailed: an entry is broken, or the way is not that of the guest.
    """
    names, dates = lines[::2], lines[1::2]
    check(len(names) == len(dates), "the log's last entry is not whole")
    for name, date in zip(names, dates, strict=True):
        check(NAMED.fullmatch(name), f"not a host's name: {name!r}")
        check(DATED.fullmatch(date), f"not a date: {date!r}")
    hosts = [name for name in names if name.startswith("et-virt")]
    way = [name for index, name in enumerate(hosts) if index == 0 or hosts[index - 1] != name]
    for index, name in enumerate(names):
        if index == 0 or names[index - 1] != name:
            print(f"  {name:<10} from {dates[index]}")
    print(f"  {'':<10}   to {dates[-1]}")
    check(way == ["et-virt08", "et-virt07", "et-virt08", "et-virt07"], f"the log shows {way}")
    return f"{len(names)} entries on {len(set(hosts))} hosts"
