"""`xm convert`: a save file of any xend as one that `xl restore` takes, and back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = """\
Write a save file in the other format: what `xm save` wrote, or what went to the relocation port,
becomes a file for `xl restore`, configuration included; a file of `xl save` becomes one for
`xm restore` of a xend. Needs no daemon and no Xen.

Mapping rows of xend-config.sxp (xendpy-map-bridge, -disk, -script, -kernel) are applied on the
way to xl. What the other format cannot carry is said on stderr, or refused.
"""
RELEASES = ("3.0", "3.1", "3.2", "3.3", "3.4", "4.0", "4.1", "4.2", "4.3", "4.4")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line; nothing slow is imported for it."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="IN", type=Path, help="the save file")
    parser.add_argument("target", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument(
        "--to", choices=("xl", "xend"), help="whose file to write; default: the other's"
    )
    parser.add_argument(
        "--release",
        choices=RELEASES,
        default=RELEASES[-1],
        metavar="R",
        help="the release of Xen whose xend is to restore it, 3.0 to 4.4 (default 4.4)",
    )
    parser.add_argument(
        "--tools",
        choices=("32", "64"),
        metavar="BITS",
        help="how wide the tools of that xend are, 32 or 64 bits: what `getconf LONG_BIT` says "
        "there (default 64); given with --to xend, a file of xend's own is written anew for them",
    )
    parser.add_argument(
        "--lossy",
        action="store_true",
        help="leave the vcpus' model-specific registers out, which no xend can restore",
    )


def run(args: argparse.Namespace) -> int:
    """Convert the file; 1 if it cannot be."""
    from dataclasses import replace

    from xendpy.config_file import load
    from xendpy.errors import XendError
    from xendpy.hypervisor.xlrules import GuestRules
    from xendpy.migration.convert_file import Format, Receiver, convert_file
    from xendpy.paths import Paths
    from xendpy.stream.legacy_dialect import DIALECTS

    try:
        config = load(Paths.choose(root=getattr(args, "root", None)).config_file).config
        done = convert_file(
            args.source,
            args.target,
            to=Format(args.to) if args.to else None,
            receiver=Receiver(
                dialect=DIALECTS[args.release],
                tool_width=int(args.tools) // 8 if args.tools else None,
                lossy=args.lossy,
            ),
            rules=replace(GuestRules.of(config), confined=False),
        )
    except XendError as error:
        print(f"Error: {args.source}: {error}", file=sys.stderr)
        return 1
    for note in done.notes:
        print(f"Note: {note}", file=sys.stderr)
    verb = "xl" if done.format is Format.XL else "xm"
    print(f"{args.target}: domain {done.config.name}, for {verb} restore")
    return 0
