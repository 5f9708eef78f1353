"""`xm inspect`: what a saved or relocated image contains, and everything that is odd about it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xendpy.migration.examine import Place
    from xendpy.migration.recording import Report
    from xendpy.stream.records import Record

DESCRIPTION = """\
Show what a file holds that `xm save` or `xl save` wrote, or that went to the relocation port (a
capture that begins with "receive"), or that an old libxc wrote without xend's envelope; or a
guest's directory in the embedded store, a partial one too. Needs no daemon and no Xen.

The sha256 is over every present frame in ascending order, each as its number (64 bits,
little-endian) and its 4096 bytes as they travelled: two guests have equal memory exactly if the
sums are equal. Exits 1 if anything is wrong with the file, and tells how far it can be read.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line; nothing slow is imported for it."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", metavar="FILE", type=Path, help="the image")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object; a line each with --records"
    )
    parser.add_argument(
        "--records", action="store_true", help="every record: offset, length, meaning"
    )
    add_type_argument(parser)


def add_type_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --type."""
    parser.add_argument(
        "--type",
        choices=("pv", "hvm"),
        help="whose stream it is, where the file does not say or is wrong",
    )


def run(args: argparse.Namespace) -> int:
    """Examine the file and print the report; 1 if there is anything wrong with it."""
    from xendpy.cli.inspection import summary, tell_lines
    from xendpy.errors import XendError

    try:
        with _examined(args) as report:
            facts = summary(report)
    except (OSError, XendError) as error:
        print(f"Error: {complaint(args.file, error)}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(facts, indent=None if args.records else 2))
    else:
        print("\n".join(tell_lines(facts)))
    return 1 if facts["anomalies"] else 0


@contextmanager
def _examined(args: argparse.Namespace) -> Iterator[Report]:
    from xendpy.guest.domain import GuestType
    from xendpy.migration.recording import examine

    if args.file.is_dir():
        from xendpy.cli.stored import examined

        with examined(args.file) as report:
            yield report
        return
    with tempfile.TemporaryFile(prefix="xm-inspect-") as scratch:
        yield examine(
            args.file,
            scratch.fileno(),
            guest_type=GuestType(args.type) if args.type else None,
            witness=_witness(args) if args.records else None,
        )


def complaint(path: Path, error: Exception) -> str:
    """Return one sentence about a file that cannot be worked on."""
    if isinstance(error, OSError):
        name = error.filename if error.filename is not None else path
        return f"{name}: {error.strerror or error}"
    return f"{path}: {error}"


def _witness(args: argparse.Namespace) -> Any:
    from xendpy.cli.explain import explain

    def as_json(place: Place, record: Record) -> None:
        line = {
            "offset": place.offset,
            "length": place.length,
            "record": type(record).__name__,
            "meaning": explain(record),
        }
        print(json.dumps(line))

    def as_text(place: Place, record: Record) -> None:
        name = type(record).__name__
        print(f"{place.offset:#012x} {place.length:>9}  {name:<15}  {explain(record)}".rstrip())

    return as_json if args.json else as_text
