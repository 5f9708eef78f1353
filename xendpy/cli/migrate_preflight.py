"""`xm migrate --dry-run`: what both sides find, without sending anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = "{:<7} {:<14} {:<8} {}"


def show(checks: Sequence[Mapping[str, Any]], *, json_wanted: bool) -> int:
    """Print the checks; return 0 if nothing forbids the migration, else 1."""
    failed = [check for check in checks if check["status"] == "failed"]
    if json_wanted:
        import json

        print(json.dumps({"possible": not failed, "checks": list(checks)}))
        return 1 if failed else 0
    print(COLUMNS.format("Side", "Check", "Result", "What was found"))
    for check in checks:
        print(COLUMNS.format(check["side"], check["name"], check["status"], check["detail"]))
    count = len(failed)
    if failed:
        print(f"\nThe migration would be refused: {count} check{'s' * (count != 1)} failed.")
    else:
        print("\nNothing forbids the migration.")
    return 1 if failed else 0
