"""Measure what relocation costs beyond moving the bytes, against bare peers in the same run.

    make bench                                  # one table; BENCH_JSON=FILE writes it as JSON too
    .venv/bin/python -m tests.bench --scale 0.125 --pairs 3 --only receive

Exit status 1 if a row is below its bar. Leaves no files.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench import files, lanes, links, live, receive, service
from tests.bench.harness import PAIRS, Bench, heading, write_json

TMPFS = Path("/dev/shm")
GROUPS = (receive, files, service, links, lanes, live)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all rows, or those asked for, and print them."""
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="size of the guests (1.0)")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"per row ({PAIRS})")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds TEXT")
    parser.add_argument("--dir", type=Path, help="where the disk is (default: temporary)")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with nothing left behind
    json_file = os.environ.get("BENCH_JSON", "")
    print(heading(), flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="xendpy-bench-", dir=args.dir) as disk,
        tempfile.TemporaryDirectory(prefix="xendpy-bench-", dir=TMPFS) as memory,
    ):
        bench = Bench(Path(disk), Path(memory), args.scale, args.pairs, args.only)
        for group in GROUPS:
            group.run(bench)
    if json_file:
        write_json(Path(json_file), bench)
    if not bench.rows:
        print(f"no row's name holds {args.only!r}", file=sys.stderr)
        return 2
    below = [row.work for row in bench.rows if row.below]
    print(f"\nbelow their bars: {'; '.join(below)}" if below else "\nevery row reaches its bar")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
