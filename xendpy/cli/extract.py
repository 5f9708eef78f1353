"""`xm extract`: the memory of a saved or relocated image, as a flat file."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xendpy.cli.inspect import add_type_argument, complaint

if TYPE_CHECKING:
    from xendpy.migration.recording import Report

DESCRIPTION = """\
Write a guest's memory to a flat file: page n at n x 4096, a hole for every absent frame, as long
as the guest's highest frame number says. Page tables are as they travelled: their entries hold
frame numbers of the guest. Needs no daemon and no Xen.

The file appears only if the whole image could be read; with --partial, what there is of it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line; nothing slow is imported for it."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", metavar="FILE", type=Path, help="the image")
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument(
        "--partial", action="store_true", help="write what a broken image holds; still exits 1"
    )
    add_type_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Write the memory; nothing is left at OUT unless all went well."""
    from xendpy.errors import StreamError

    try:
        report = _extract(args)
    except (OSError, StreamError) as error:
        print(f"Error: {complaint(args.file, error)}", file=sys.stderr)
        return 1
    for anomaly in report.anomalies:
        at = "" if anomaly.offset is None else f" at {anomaly.offset:#x}"
        kind = "Warning" if report.whole else "Error"
        print(f"{kind}: {args.file}{at}: {anomaly.text}", file=sys.stderr)
    if not report.whole and not (args.partial and report.image):
        return 1
    if report.image is not None:
        print(f"{args.out}: {len(report.image.present)} of {report.image.nr_pages} pages")
    return 0 if report.whole else 1


def _extract(args: argparse.Namespace) -> Report:
    """Write beside OUT and give it its name at the end."""
    from xendpy.guest.domain import GuestType
    from xendpy.migration.recording import examine

    if not args.force and os.path.lexists(args.out):
        raise FileExistsError(17, "exists; --force overwrites it", str(args.out))
    with tempfile.NamedTemporaryFile(
        dir=args.out.parent, prefix=f".{args.out.name}.", delete=False
    ) as file:
        try:
            guest_type = GuestType(args.type) if args.type else None
            report = examine(args.file, file.fileno(), guest_type=guest_type)
            if report.whole or (args.partial and report.image is not None):
                _publish(file.name, args.out, force=args.force)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(file.name)
    return report


def _publish(made: str, out: Path, *, force: bool) -> None:
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(made, 0o600 & ~umask)  # memory holds keys and passwords: for its owner alone
    if force:
        os.replace(made, out)
    else:
        os.link(made, out)  # fails if somebody else has made it meanwhile
