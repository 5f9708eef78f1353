"""A real guest through the old wire: saved by Xen, sent as an old xend sends, running again."""

from __future__ import annotations

import re

from tests.lab import running
from tests.lab.recipe import QUICK
from tests.lab.session import Host, Session, check, matching, until

TICK = re.compile(r"^TICK n=(\d+)", re.MULTILINE)
KERNEL = "/var/lib/xen/images"
DOOR = 9001  # where a host of ours looks like an old xend


def config(name: str, *, memory: int = 96, more: str = "") -> str:
    """Return the configuration of a guest that counts, for xm create."""
    return f"""\
name = "{name}"
memory = {memory}
kernel = "{KERNEL}/vmlinux"
ramdisk = "{KERNEL}/ramdisk"
extra = "console=hvc0 {QUICK}"
on_crash = "preserve"
{more}"""


def create(host: Host, name: str, *, memory: int = 96, more: str = "") -> None:
    """Create a guest that counts, and see it count."""
    # A guest of that name that was here before has left its last number.
    host.ask(f"truncate -c -s 0 /var/log/xen/console/guest-{name}.log")
    host.run(f"cat >{name}.cfg <<'end'\n{config(name, memory=memory, more=more)}end")
    host.run(f"xm create {name}.cfg")
    counts(host, name)


def count(host: Host, name: str) -> int:
    """Return the last number that a guest has shown on this host, 0 if none."""
    found = TICK.findall(host.ask(f"tail -c 4000 /var/log/xen/console/guest-{name}.log"))
    return int(found[-1]) if found else 0


def counts(host: Host, name: str, above: int = 0) -> int:
    """Wait until a guest counts on, beyond `above`; return where it is.

    Two samples: an old line alone would also be there with a dead guest.
    """
    first = max(above, count(host, name))
    until(lambda: count(host, name) > first, f"{name} counts on {host.name} beyond {first}")
    reached = count(host, name)
    print(f"  {name} on {host.name}: {first} -> {reached}")
    return reached


def send_old(host: Host, target: Host, file: str, release: str, cut: str = "") -> str:
    """Play an old xend that sends a file; return what its user would have seen."""
    return running.run(host, f"send_old {target.name} 8002 {release} {file} {cut}".rstrip())


def walk(session: Session) -> None:
    """Send one real guest over the old wire, from a file and running."""
    seven, eight = session.hosts
    with session.step("a PV guest over the old wire (v1, xend 4.1's sender)"):
        create(eight, "wire")
        eight.run("xl save wire /root/wire.xl 2>&1 | grep -v progress; ls -l /root/wire.xl")
        saved = count(eight, "wire")
        eight.run("xm convert --to xend /root/wire.xl /root/wire.sav; rm /root/wire.xl")
        eight.run("xm inspect /root/wire.sav")
        shown = send_old(eight, seven, "/root/wire.sav", "4.1")
        matching(r"^then: closed, destroyed$", shown, "the old xend's end")
        until(lambda: "wire" in seven.guests(), "the guest is there")
        seven.run("xm list; xl list")
        reached = counts(seven, "wire", saved)
        session.remark = f"saved at {saved}, seen at {reached}"
        seven.run("xm migrations")
        check_nothing_left(seven)
        eight.run("rm /root/wire.sav")
    with session.step("live over the old wire (--peer-release 4.1)"):
        _to_a_xend(session, seven, eight, "--live ")
    with session.step("offline over the old wire"):
        _to_a_xend(session, eight, seven, "")
        seven.run("xm destroy wire")


def _to_a_xend(session: Session, source: Host, target: Host, live: str) -> None:
    """Have the daemon send the guest as xend's own format, and the other take it as that."""
    before = counts(source, "wire")
    with running.listening(target, f"old_door {DOOR}", DOOR):
        words = f"xm migrate {live}--peer-release 4.1 -p {DOOR} wire {target.name}"
        source.run(f"time {words}", timeout_s=1800)
    check("wire" not in source.guests(), f"the guest is still on {source.name}")
    session.remark = f"{before} before, {counts(target, 'wire', before)} after"
    target.run("xm list; xm migrations")
    taken = target.run("grep -F 'wire runs here' /var/log/xen/xend.log | tail -n 1")
    matching(r"\(from_xend:", taken, "who took the guest in")
    for host in session.hosts:
        check_nothing_left(host)


def check_nothing_left(host: Host) -> None:
    """See that no half-built guest, save file or child of xl is left."""
    # The directory is made for the first guest that is spooled.
    left = "ls -A /var/lib/xend/incoming 2>/dev/null; xl list | grep -E -- '--[im]|null'; true"
    shown = host.run(left)
    check(not shown.strip(), f"something is left on {host.name}: {shown.strip()}")
