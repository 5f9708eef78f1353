"""What one host does by itself: virt-install, and guests that stay where programs fail."""

from __future__ import annotations

from tests.lab import virsh
from tests.lab.failures import another
from tests.lab.oldwire import count, counts, create
from tests.lab.session import Session, check, matching, until

GUEST = "steady"
XL = "/usr/sbin/xl"


def walk(session: Session) -> None:
    """Do it on et-virt07; a failure does not keep the rest from being tried."""
    session.group(_install)
    if session.group(_begin):
        session.each(STEPS, _tidy)
        session.seven.run(f"xm destroy {GUEST}")


def _install(session: Session) -> None:
    with session.step("virt-install, the chapter's line"):
        virsh.install(session.seven)


def _begin(session: Session) -> None:
    with session.step("a guest that stays"):
        create(session.seven, GUEST)


def _tidy(session: Session) -> None:
    for name in session.seven.guests():
        if name != GUEST:
            session.seven.run(f"xl destroy {name}", status=None)


def _missing(session: Session) -> None:
    host = session.seven
    with another(host, XL, ""):
        matching(r"^Error: .*/xl", host.run("xm list", status=1), "what xm list says")
    host.run("xm list")
    counts(host, GUEST)


def _hanging(session: Session) -> None:
    host = session.seven
    with another(host, XL, "#!/bin/sh\\nexec sleep 3210\\n"):
        shown = host.run("time xm list", status=1)
        matching(r"^Error: .*xl list .*took longer", shown, "what xm list says")
    check(not host.ask("pgrep -f 'sleep 3210'"), "a hanging xl is left")
    host.run("xm list")
    counts(host, GUEST)


def _restart(session: Session) -> None:
    """Guests, one of them with a device model, outlive the service, restarted and killed."""
    host = session.seven
    create(host, "pictured", more='vfb = ["vnc=1"]\n')
    models = host.run("pgrep -a qemu | cut -c1-150")
    check(models.strip(), "the guest with a frame buffer has no qemu")
    for command in ("service xend restart", "systemctl kill --kill-whom=main -s KILL xend"):
        before = [count(host, name) for name in (GUEST, "pictured")]
        host.run(command)
        until(lambda: host.ask("systemctl is-active xend").strip() == "active", "xend is up")
        for name, seen in zip((GUEST, "pictured"), before, strict=True):
            counts(host, name, seen)
        check(host.run("pgrep -a qemu | cut -c1-150") == models, "qemu is another")
        host.run("xm list")
    host.run("xm destroy pictured")


STEPS = (
    ("xl is missing", _missing),
    ("xl hangs", _hanging),
    ("the service restarted while guests run", _restart),
)
