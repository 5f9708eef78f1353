"""What can go wrong, on real Xen: the guest goes on, nothing is left, the message helps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.lab.build import LabError
from tests.lab.oldwire import (
    PYTHON,
    check_nothing_left,
    config,
    count,
    counts,
    create,
    send_old,
)
from tests.lab.session import Host, Session, StepFailed, check, matching, until

GUEST = "wanderer"
PORT = 9002
SCRIPT = "/etc/xen/scripts/vif-bridge"


@dataclass(frozen=True)
class Phase:
    """Where a connection is cut: so many units, or a share of the bytes, of one direction."""

    name: str
    direction: str
    back: int = 0  # units before the last of a whole migration
    share: float = 0.0


PHASES = (
    Phase("in the pages", "up", share=0.5),
    Phase("before the target has said received", "up", back=2),
    Phase("when the target has said received", "down", back=1),
    Phase("when the source has let go", "up", back=0),
    Phase("before the target's last word", "down", back=0),
)


def walk(session: Session) -> None:
    """Break one thing after the other; a failure does not keep the others from being tried."""
    eight = session.eight
    session.group(lambda one: _begin(one, eight))
    for title, work in (
        *((f"connection cut {phase.name}", _cutting(phase)) for phase in PHASES),
        ("xl restore killed on the target", _kill_restore),
        ("xl killed on the source", _kill_save),
        ("vif script broken: a xendpy host sends", _broken_script),
        ("vif script broken after an old xend's last byte", _broken_script_old),
        ("an old xend's connection cut in the pages", _cut_old),
        ("target out of memory", _no_memory),
        ("bridge missing on the target", _no_bridge),
        ("name taken on the target", _name_taken),
        ("the service restarted while guests run", _restart),
    ):
        try:
            with session.step(title):
                work(session)
        except StepFailed:
            _tidy(session)


def _begin(session: Session, host: Host) -> None:
    with session.step("a guest for the faults"):
        create(host, GUEST, more='vif = ["bridge=xenbr1"]\n')
        units, sizes = _measure(session)
        print(f"  a whole migration: {units} lines and frames, {sizes} bytes")
        session.remark = f"{sizes['up']} bytes"
        session.units, session.sizes = units, sizes


def where(session: Session) -> tuple[Host, Host]:
    """Return the host that has the guest, and the other; fail unless exactly one has it."""
    having = [host for host in session.hosts if GUEST in host.guests()]
    check(len(having) == 1, f"{GUEST} is on {[host.name for host in having]}")
    (source,) = having
    return source, session.eight if source is session.seven else session.seven


def _measure(session: Session) -> tuple[dict[str, int], dict[str, int]]:
    source, target = where(session)
    with cutter(source, target) as ended:
        source.run(f"xm migrate -p {PORT} {GUEST} 127.0.0.1", timeout_s=1800)
        counts(target, GUEST)
        told = ended()
    return told["units"], told["bytes"]


@contextmanager
def cutter(
    source: Host, target: Host, fault: str = ""
) -> Iterator[Callable[[], dict[str, dict[str, int]]]]:
    """Run tests.lab.cutter on the source; the yielded call ends it and returns what it says."""
    words = f"{PYTHON} tests.lab.cutter {PORT} {target.name} {fault}".rstrip()
    source.run(f"({words}) >/root/cutter.log 2>&1 & echo $! >/root/cutter.pid")
    until(lambda: f":{PORT}" in source.ask("ss -ltn"), "the cutter listens")

    def ended() -> dict[str, dict[str, int]]:
        source.ask("pkill -TERM -P $(cat /root/cutter.pid); sleep 2")
        return dict(json.loads(source.run("cat /root/cutter.log").splitlines()[-1]))

    try:
        yield ended
    finally:
        source.ask("pkill -KILL -P $(cat /root/cutter.pid)")


def _cutting(phase: Phase) -> Callable[[Session], None]:
    def work(session: Session) -> None:
        source, target = where(session)
        before = count(source, GUEST)
        if phase.share:
            fault = f"{phase.direction} offset {int(session.sizes['up'] * phase.share)}"
        else:
            fault = f"{phase.direction} unit {session.units[phase.direction] - phase.back}"
        with cutter(source, target, fault) as ended:
            source.run(f"xm migrate -p {PORT} {GUEST} 127.0.0.1", status=None, timeout_s=1800)
            check(ended()["cut"], "nothing was cut")
        _settled(session, before)

    return work


def _settled(session: Session, before: int) -> Host:
    """See the guest count on, on exactly one host, and nothing left on either."""
    until(lambda: _in_doubt(session) == 0, "no migration is in doubt")
    host, _ = where(session)
    counts(host, GUEST, before)
    for each in session.hosts:
        each.run("xm list; xm migrations | tail -n 3")
        check_nothing_left(each)
    session.remark = f"goes on on {host.name}"
    return host


def _in_doubt(session: Session) -> int:
    return sum(host.ask("xm migrations").count("in doubt") for host in session.hosts)


def _kill(host: Host, verb: str) -> None:
    """Kill xl as soon as it is at work.

    /usr/sbin/xl hands over to a program elsewhere, whose whole path is then the first word.
    """
    host.run(
        f"until pid=$(pgrep -o -f '[/]xl {verb}'); do sleep 0.2; done; sleep 2;"
        " kill -KILL $pid && echo killed $pid",
        timeout_s=600,
    )


def _migrate_beside(source: Host, target: Host) -> None:
    source.run(
        f"(xm migrate {GUEST} {target.name} >/root/migrate.log 2>&1;"
        " echo status $? >>/root/migrate.log) </dev/null &"
    )


def _told(source: Host) -> str:
    until(lambda: "status" in source.ask("cat /root/migrate.log"), "xm migrate has ended")
    return source.run("cat /root/migrate.log")


def _kill_restore(session: Session) -> None:
    _killed(session, where(session)[1], "restore")


def _kill_save(session: Session) -> None:
    _killed(session, where(session)[0], "(save|migrate)")


def _killed(session: Session, host: Host, verb: str) -> None:
    source, target = where(session)
    before = count(source, GUEST)
    source.ask("rm -f /root/migrate.log")
    _migrate_beside(source, target)
    _kill(host, verb)
    matching(r"^Error: .*", _told(source), "what xm migrate says")
    check(_settled(session, before) is source, "the guest has moved")


@contextmanager
def broken_script(host: Host) -> Iterator[None]:
    """Have the script that attaches a guest's network fail."""
    host.run(f"cp -p {SCRIPT} /root/vif-bridge; printf '#!/bin/sh\\nexit 1\\n' >{SCRIPT}")
    try:
        yield
    finally:
        host.run(f"cp -p /root/vif-bridge {SCRIPT}")


def _broken_script(session: Session) -> None:
    source, target = where(session)
    before = count(source, GUEST)
    with broken_script(target):
        shown = source.run(f"xm migrate {GUEST} {target.name}", status=1, timeout_s=1800)
        matching(r"^Error: .*", shown, "what xm migrate says")
        check(_settled(session, before) is source, "the guest has moved")


def _broken_script_old(session: Session) -> None:
    """What an old xend has sent whole is kept, and the message says how to start it."""
    seven, eight = session.hosts
    saved = _as_old_file(eight, "legacy", 'vif = ["bridge=xenbr1"]\n')
    with broken_script(seven):
        send_old(eight, seven, "/root/legacy.sav", "4.1")
        log = "tail -n 60 /var/log/xen/xend.log"
        until(lambda: "xm restore /" in seven.ask(log), "the log says what to do")
    line = matching(r"xm restore (/\S+\.save)", seven.ask(log), "the log")
    seven.run(f"{line[0]}", timeout_s=1800)
    counts(seven, "legacy", saved)
    seven.run(f"xm destroy legacy; rm -f {line[1]}")
    check_nothing_left(seven)


def _as_old_file(host: Host, name: str, more: str = "") -> int:
    """Make a save file of xend's of a real guest; return where it was."""
    create(host, name, more=more)
    host.run(f"xl save {name} /root/{name}.xl 2>&1 | grep -v progress")
    reached = count(host, name)
    host.run(f"xm convert --to xend /root/{name}.xl /root/{name}.sav && rm /root/{name}.xl")
    return reached


def _cut_old(session: Session) -> None:
    seven, eight = session.hosts
    send_old(eight, seven, "/root/legacy.sav", "4.1", cut="20000000")
    until(lambda: "legacy" not in seven.ask("xl list"), "the half guest is gone")
    time.sleep(1)
    check("legacy" not in seven.run("xm list; xl list"), "a half guest is left")
    check_nothing_left(seven)


def _refused(session: Session, pattern: str) -> None:
    source, target = where(session)
    before = count(source, GUEST)
    shown = source.run(f"xm migrate {GUEST} {target.name}", status=1, timeout_s=1800)
    matching(pattern, shown, "what xm migrate says")
    counts(source, GUEST, before)


def _no_memory(session: Session) -> None:
    _, target = where(session)
    target.run(f"cat >filler.cfg <<'end'\n{config('filler')}end")
    target.run(
        "free=$(xl info | sed -n 's/^free_memory *: //p');"
        " xl create -p -q filler.cfg memory=$((free - 60)); xl list"
    )
    try:
        _refused(session, r"MiB")
    finally:
        target.run("xl destroy filler")


def _no_bridge(session: Session) -> None:
    source, target = where(session)
    source.run("ip link add xenbr2 type bridge; ip link set xenbr2 up")
    create(source, "bridged", more='vif = ["bridge=xenbr2"]\n')
    shown = source.run(f"xm migrate bridged {target.name}", status=1, timeout_s=1800)
    matching("bridge xenbr2 does not exist", shown, "what xm migrate says")
    counts(source, "bridged")
    source.run("xm destroy bridged; ip link del xenbr2")


def _name_taken(session: Session) -> None:
    source, target = where(session)
    create(target, GUEST)
    before = [count(host, GUEST) for host in (source, target)]
    shown = source.run(f"xm migrate {GUEST} {target.name}", status=1, timeout_s=1800)
    matching("already exists", shown, "what xm migrate says")
    for host, seen in zip((source, target), before, strict=True):
        counts(host, GUEST, seen)
    target.run(f"xm destroy {GUEST}")


def _restart(session: Session) -> None:
    """Guests, one of them with a device model, outlive the service, restarted and killed."""
    source, _ = where(session)
    create(source, "pictured", more='vfb = ["vnc=1"]\n')
    models = source.run("pgrep -a qemu | cut -c1-150")
    check(models.strip(), "the guest with a frame buffer has no qemu")
    for command in ("service xend restart", "systemctl kill -s KILL xend"):
        before = [count(source, name) for name in (GUEST, "pictured")]
        source.run(command)
        until(lambda: source.ask("systemctl is-active xend").strip() == "active", "xend is up")
        for name, seen in zip((GUEST, "pictured"), before, strict=True):
            counts(source, name, seen)
        check(source.run("pgrep -a qemu | cut -c1-150") == models, "qemu is another")
        source.run("xm list")
    source.run("xm destroy pictured")


def _tidy(session: Session) -> None:
    """Give the next fault a guest to break, whatever this one has left."""
    for host in session.hosts:
        try:
            host.run("xm migrations; xl list; ls -l /var/lib/xend/incoming", status=None)
            for name in host.guests():
                if name != GUEST:
                    host.run(f"xl destroy {name}", status=None)
        except LabError as error:
            print(error)
    having = [host for host in session.hosts if GUEST in host.guests()]
    if not having:
        create(session.eight, GUEST, more='vif = ["bridge=xenbr1"]\n')
