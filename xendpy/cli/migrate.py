"""`xm migrate` and `xm migrations`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xendpy.cli.options import Invocation, UsageError

COLUMNS = "{:<18} {:<3} {:<24} {:<22} {:<13} {:>5} {:>10} {:>9} {:>8}"


def migrate(xm: Invocation) -> None:
    """Ask the daemon to migrate a domain; silent on success, as xm is."""
    if len(xm.params) != 2:
        raise UsageError("Invalid number of arguments")
    domain, target = xm.params
    xm.call(
        "xend.domain.migrate",
        domain,
        target,
        int(xm.given("live")),
        int(xm.options.get("port", 0)),
        int(xm.options.get("node", -1)),
        1 if xm.given("ssl") else None,  # nil: what xend-relocation-ssl says
        int(xm.given("change_home_server")),
    )


def migrations(xm: Invocation) -> None:
    """Print the migrations that ended lately, then those under way."""
    if xm.params:
        raise UsageError("Invalid number of arguments")
    rows = xm.call("xendpy.migrations")
    titles = ("ID", "Way", "Name", "Peer", "State", "Round", "Pages", "MiB/s", "Time(s)")
    print(COLUMNS.format(*titles))
    for row in rows:
        print(migration_line(row))
        if row.get("reason"):
            print(f"    {row['reason']}")


def migration_line(row: Mapping[str, Any]) -> str:
    """Return one line of the table of migrations."""
    return COLUMNS.format(
        row["id"],
        row["direction"],
        row["domain"],
        row["peer"],
        row["state"],
        row["iteration"],
        row["pages"],
        f"{float(row['rate']) / (1 << 20):.1f}",
        f"{float(row['elapsed']):.1f}",
    )
