"""A real guest parked on a host without Xen: it rests in an embedded store, and runs again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.oldwire import check_nothing_left, count, counts, create
from tests.lab.session import Host, Session, check, matching

GUEST = "parked"
ROOT = "/root/park"
PORT = 8102
CONFIG = f"""\
(xendpy-hypervisor store)
(xendpy-libvirt-server no)
(xend-relocation-server yes)
(xend-relocation-port {PORT})
(xend-relocation-hosts-allow '^et-virt')
"""


def walk(session: Session) -> None:
    """Send a guest to a store, and from there to a Xen host again."""
    seven, eight = session.hosts
    with session.step("a PV guest parked in an embedded store, and back on Xen"):
        create(eight, GUEST)
        with store(seven) as xm:
            eight.run(f"time xm migrate -p {PORT} {GUEST} {seven.name}", timeout_s=1800)
            before = count(eight, GUEST)
            check(GUEST not in eight.guests(), f"the guest is still on {eight.name}")
            matching(rf"^{GUEST} .* --p--- ", seven.run(f"{xm} list"), "the store's xm list")
            seven.run(f"time {xm} migrate -p 8002 {GUEST} {seven.name}", timeout_s=1800)
            check(GUEST not in seven.run(f"{xm} list"), "the store has it still")
        session.remark = f"{before} before, {counts(seven, GUEST, before)} after"
        seven.run("xm list; xm migrations")
        check_nothing_left(seven)
        seven.run(f"xm destroy {GUEST}")


@contextmanager
def store(host: Host) -> Iterator[str]:
    """Run a second daemon on a host, without its Xen; give its `xm`."""
    file = f"{ROOT}/etc/xen/xend-config.sxp"
    host.run(f"mkdir -p {ROOT}/etc/xen; cat >{file} <<'end'\n{CONFIG}end")
    host.run(f"xend --root {ROOT} start")
    try:
        yield f"xm --root {ROOT}"
    finally:
        host.run(f"xend --root {ROOT} stop; rm -r {ROOT}")
