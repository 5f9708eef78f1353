"""The guest of the fault steps, wherever it is: it must always be on exactly one host."""

from __future__ import annotations

from tests.lab.errors import LabError
from tests.lab.oldwire import check_nothing_left, counts, create
from tests.lab.session import Host, Session, check, until

GUEST = "wanderer"
VIF = 'vif = ["bridge=xenbr1"]\n'
LOG = "/root/migrate.log"


def where(session: Session) -> tuple[Host, Host]:
    """Return the host that has the guest, and the other; fail unless exactly one has it."""
    having = [host for host in session.hosts if GUEST in host.guests()]
    check(len(having) == 1, f"{GUEST} is on {[host.name for host in having]}")
    (source,) = having
    return source, session.eight if source is session.seven else session.seven


def settled(session: Session, before: int) -> Host:
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


def migrate_beside(source: Host, target: Host) -> None:
    """Begin a migration, and come back at once; `told` waits for its end."""
    # Nothing of it may hold the output of the command that begins it: that is waited for.
    source.run(f"(xm migrate {GUEST} {target.name}; echo status $?) </dev/null >{LOG} 2>&1 &")


def told(source: Host) -> str:
    """Return what xm migrate has said, and its status."""
    until(lambda: "status" in source.ask(f"cat {LOG}"), "xm migrate has ended")
    return source.run(f"cat {LOG}")


def present(session: Session) -> None:
    """Create the guest, if no host has it."""
    if not any(GUEST in host.guests() for host in session.hosts):
        create(session.eight, GUEST, more=VIF)


def tidy(session: Session) -> None:
    """Give the next fault a guest to break, whatever this one has left."""
    for host in session.hosts:
        try:
            host.run("xm migrations; xl list; ls -l /var/lib/xend/incoming", status=None)
            for name in host.guests():
                if name != GUEST:
                    host.run(f"xl destroy {name}", status=None)
        except LabError as error:
            print(error)
    present(session)
