"""What the target refuses before the first page: the guest never stops, the message says why."""

from __future__ import annotations

from tests.lab.oldwire import config, count, counts, create
from tests.lab.session import Session, matching
from tests.lab.wanderer import GUEST, where


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
        _refused(session, r"^Error: .* MiB .*\(from ")
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


STEPS = (
    ("target out of memory", _no_memory),
    ("bridge missing on the target", _no_bridge),
    ("name taken on the target", _name_taken),
)
