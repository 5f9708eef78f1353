"""`xend pki`: a CA for the relocation of guests, and a certificate for each host."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NoReturn

from xendpy.errors import XendError
from xendpy.paths import Paths
from xendpy.relocation.pki import CA, Certificate, Pki

USAGE = "xend pki init | issue HOST [--address A] | show | renew [HOST]"
COLUMNS = "{:<24} {:<40} {:<12} {:>6}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise XendError(f"{message}\nusage: {USAGE}")


def run(args: Sequence[str], paths: Paths) -> int:
    """Run one pki command; return the exit code."""
    try:
        chosen = _parser().parse_args(list(args))
        pki = Pki(paths.config_dir / "pki")
        now = datetime.now(UTC)
        match chosen.command:
            case "init":
                made = pki.init(f"xendpy CA of {os.uname().nodename}", now)
                print(f"{made.path}: a CA until {_day(made)}; keep {pki.key_file(CA)} safe")
            case "issue":
                made = pki.issue(chosen.host, chosen.address, now)
                _explain(pki, chosen.host, made)
            case "show":
                _show(pki, now)
            case "renew":
                _renew(pki, chosen.hosts, now)
    except XendError as error:
        print(f"xend pki: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"xend pki: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="xend pki", usage=USAGE, add_help=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    commands.add_parser("init")
    issue = commands.add_parser("issue")
    issue.add_argument("host")
    issue.add_argument("--address", action="append", default=[])
    commands.add_parser("show")
    commands.add_parser("renew").add_argument("hosts", nargs="*")
    return parser


def _explain(pki: Pki, host: str, made: Certificate) -> None:
    place = "/etc/xen/pki"
    print(f"{made.path}: {', '.join(made.names)}, until {_day(made)}")
    print(f"\nOn {host}, below {place} (the key with mode 0600, nobody else's to read):")
    files = (pki.certificate_file(host), pki.key_file(host), pki.certificate_file(CA))
    print(f"    {' '.join(file.name for file in files)}")
    print("\nIn its xend-config.sxp:")
    for line in (
        "(xend-relocation-ssl-server yes)",
        f"(xend-relocation-server-ssl-key-file {place}/{host}.key)",
        f"(xend-relocation-server-ssl-cert-file {place}/{host}.pem)",
        f"(xendpy-relocation-tls-ca {place}/{CA}.pem)",
        "(xend-relocation-ssl yes)",
    ):
        print(f"    {line}")


def _show(pki: Pki, now: datetime) -> None:
    print(COLUMNS.format("File", "For", "Until", "Days"))
    for item in pki.show():
        names = ", ".join(item.names) or item.issuer
        print(COLUMNS.format(item.path.name, names, _day(item), item.days_left(now)))


def _renew(pki: Pki, hosts: Sequence[str], now: datetime) -> None:
    renewed = pki.renew(hosts, now)
    for item in renewed:
        print(f"{item.path}: until {_day(item)}; copy it to its host: the daemon takes it up")
    if not renewed:
        print("nothing expires soon")


def _day(certificate: Certificate) -> str:
    return f"{certificate.not_after:%Y-%m-%d}"
