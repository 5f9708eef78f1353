"""Two Xen hosts in emulators, and on them what the project is for.

    make lab                                # build what is missing, run everything, show the table
    python -m tests.lab --only chapter      # one part of it
    python -m tests.lab --up                # boot, and leave both hosts to you
    python -m tests.lab.machine 7 'xl list'
    python -m tests.lab --again --only faults   # on the hosts that are up, which stay up
    python -m tests.lab --down
    make lab-clean                          # remove what was built

Exit status 0 only if every step went as it must.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lab import (
    alone,
    build,
    chapter,
    contract,
    faults,
    grub,
    guests,
    oldwire,
    parking,
    project,
    virsh,
)
from tests.lab.build import Image
from tests.lab.errors import LabError
from tests.lab.machine import Cable, Machine, attach, start
from tests.lab.place import cache
from tests.lab.recipe import HOSTS
from tests.lab.session import Host, Row, Session

PARTS: dict[str, Callable[[Session], None]] = {
    "chapter": chapter.walk,
    "oldwire": oldwire.walk,
    "parking": parking.walk,
    "guests": guests.walk,
    "grub": grub.walk,
    "virsh": virsh.walk,
    "alone": alone.walk,
    "contract": contract.walk,
    "faults": faults.walk,
}
BESIDE = {"alone": "contract"}  # each on a host of its own, so at the same time


def main() -> int:
    """Do what the command line says."""
    args = _arguments()
    place = cache()
    if args.down or args.clean:
        _stop(place)
        if args.clean:
            shutil.rmtree(place, ignore_errors=True)
        return 0
    try:
        return _again(place, args) if args.again else _anew(place, args)
    except LabError as error:
        print(f"make lab: {error}", file=sys.stderr)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lab")
    parser.add_argument("--up", action="store_true", help="boot, and leave it so")
    parser.add_argument("--down", action="store_true", help="stop the hosts that are left")
    parser.add_argument("--clean", action="store_true", help="stop them, remove what was built")
    parser.add_argument("--again", action="store_true", help="use the hosts that are up")
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part alone")
    parser.add_argument(
        "--fault", default="", metavar="TEXT", help="faults whose title holds TEXT"
    )
    return parser.parse_args()


def _anew(place: Path, args: argparse.Namespace) -> int:
    began_s = time.monotonic()
    image = build.build(place)
    built = Row("build what is missing", time.monotonic() - began_s, remark=f"kept in {place}")
    _show_packages(image)
    _stop(place)
    try:
        cable = Cable.between(*HOSTS)
        seven = Host(start(image, 7, cable, image.share_disk))
        session = Session(
            seven, Host(start(image, 8, cable)), [built], fault=args.fault, began_s=began_s
        )
        if session.group(_boot) and not args.up:
            _parts(session, args.only)
        return 0 if session.table() else 1
    finally:
        if not args.up:
            _stop(place)


def _again(place: Path, args: argparse.Namespace) -> int:
    session = Session(*(Host(attach(place, number)) for number in HOSTS), fault=args.fault)
    for host in session.hosts:  # a guest of an earlier run may have counted further
        host.ask("truncate -s 0 /var/log/xen/console/guest-*.log; xl dmesg -c >/dev/null")
    _parts(session, args.only)
    return 0 if session.table() else 1


def _parts(session: Session, only: Sequence[str] | None) -> None:
    wanted = [name for name in PARTS if name in (only or PARTS)]
    while wanted:
        name = wanted.pop(0)
        if wanted[:1] == [BESIDE.get(name)]:
            session.groups_beside(PARTS[name], PARTS[wanted.pop(0)])
        else:
            session.group(PARTS[name])


def _boot(session: Session) -> None:
    with session.step("boot et-virt07 and et-virt08, the service comes up"):
        for host in session.hosts:
            host.machine.wait()
        for host in session.hosts:
            host.run("systemctl is-system-running --wait; systemctl --failed", status=None)
            host.run("xl list; uname -a")
            host.run("xl info | grep -E '^(xen_version|xen_caps|virt_caps|.*_memory)'")
            host.run("xenstore-write /tool/lab/host $(hostname); xenstore-chmod /tool/lab/host r0")
    with session.step("the project, installed by make install"):
        project.show(session)


def _show_packages(image: Image) -> None:
    print("Debian packages of domain 0:")
    for line in image.packages.read_text().splitlines():
        print(f"  {line}")


def _stop(place: Path) -> None:
    for number in HOSTS:
        try:
            machine: Machine = attach(place, number)
        except LabError:
            continue
        machine.stop()


if __name__ == "__main__":
    sys.exit(main())
