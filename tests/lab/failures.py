"""Programs that end or fail in a hand-over: xl, the daemon, a network script."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.lab.oldwire import check_nothing_left, count, counts, create, send_old
from tests.lab.session import Host, Session, check, matching, until
from tests.lab.wanderer import GUEST, VIF, migrate_beside, settled, told, where

SCRIPT = "/etc/xen/scripts/vif-bridge"
PART_BYTES = 20_000_000  # of 96 MiB


def _in_the_pages(host: Host, command: str) -> None:
    """Run a command there when a part of the guest has passed through xl's helper, and not all."""
    has_moved = f"awk '/^[rw]char/ {{n += $2}} END {{exit n < {PART_BYTES}}}'"
    io = "/proc/$(pgrep -x libxl-save-help)/io"  # the kernel keeps 15 characters of a name
    host.run(
        f"until {has_moved} {io} 2>/dev/null; do sleep 0.1; done; {command}",
        timeout_s=600,
    )


def _kill_restore(session: Session) -> None:
    _killed(session, where(session)[1], "restore")


def _kill_save(session: Session) -> None:
    _killed(session, where(session)[0], "(save|migrate)")


def _killed(session: Session, host: Host, verb: str) -> None:
    source, target = where(session)
    before = count(source, GUEST)
    migrate_beside(source, target)
    # /usr/sbin/xl hands over to a program elsewhere, whose whole path is then the first word.
    _in_the_pages(host, f"pkill -KILL -o -f '[/]xl {verb}' && echo killed")
    matching(r"^Error: .*", told(source), "what xm migrate says")
    check(settled(session, before) is source, "the guest has moved")


def _kill_source_daemon(session: Session) -> None:
    _daemon_killed(session, where(session)[0])


def _kill_target_daemon(session: Session) -> None:
    _daemon_killed(session, where(session)[1])


def _daemon_killed(session: Session, host: Host) -> None:
    source, target = where(session)
    before = count(source, GUEST)
    migrate_beside(source, target)
    _in_the_pages(host, "systemctl kill --kill-whom=main -s KILL xend")
    until(lambda: host.ask("systemctl is-active xend").strip() == "active", "xend is up")
    told(source)
    check(settled(session, before) is source, "the guest has moved")


@contextmanager
def another(host: Host, program: str, text: str) -> Iterator[None]:
    """Have another program, of that text, where one was, or none at all."""
    new = f"printf '{text}' >{program}; chmod 755 {program}" if text else "true"
    host.run(f"mv {program} {program}.away; {new}")
    try:
        yield
    finally:
        host.run(f"mv {program}.away {program}")


def broken_script(host: Host) -> AbstractContextManager[None]:
    """Have the script that attaches a guest's network fail."""
    return another(host, SCRIPT, "#!/bin/sh\\nexit 1\\n")


def _broken_script(session: Session) -> None:
    source, target = where(session)
    before = count(source, GUEST)
    with broken_script(target):
        shown = source.run(f"xm migrate {GUEST} {target.name}", status=1, timeout_s=1800)
        matching(r"^Error: .*/vif-bridge .*\(from ", shown, "what xm migrate says")
        check(settled(session, before) is source, "the guest has moved")


def _broken_script_old(session: Session) -> None:
    """What an old xend has sent whole is kept, and the message says how to start it."""
    seven, eight = session.hosts
    saved = _as_old_file(eight, "legacy", VIF)
    with broken_script(seven):
        shown = send_old(eight, seven, "/root/legacy.sav", "4.1")
        matching(r"^then: .*destroyed", shown, "what the old xend did")
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
    if not eight.ask("ls /root/legacy.sav 2>/dev/null"):  # the step before was left out
        _as_old_file(eight, "legacy", VIF)
    shown = send_old(eight, seven, "/root/legacy.sav", "4.1", cut="20000000")
    matching("sent 20000000 bytes", shown, "what the old xend did")
    until(lambda: "legacy" not in seven.ask("xl list"), "the half guest is gone")
    check("legacy" not in seven.run("xm list; xl list"), "a half guest is left")
    check_nothing_left(seven)
    eight.run("rm /root/legacy.sav")


STEPS = (
    ("xl restore killed on the target", _kill_restore),
    ("xl killed on the source", _kill_save),
    ("the source's daemon killed in the pages", _kill_source_daemon),
    ("the target's daemon killed in the pages", _kill_target_daemon),
    ("vif script broken: a xendpy host sends", _broken_script),
    ("vif script broken after an old xend's last byte", _broken_script_old),
    ("an old xend's connection cut in the pages", _cut_old),
)
