"""Coverage-guided fuzzing by atheris, bounded in time: `make fuzz`.

    python -m tests.fuzz.run [TARGET ...] [--seconds N] [--runs N] [--out DIR]

Each target has a process of its own and ends with one line: inputs, seconds, what was found. An
input that takes over a second, or a process over 1 GiB, is a find as well; its input is kept
below DIR.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

MAX_INPUT = 64 << 10  # bytes
MAX_RSS_MIB = 1024
SLOW_S = 1


def main() -> int:
    """Fuzz the targets one after the other; return how many had finds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "xendpy-fuzz")
    chosen = parser.parse_args()
    from tests.fuzz.targets import TARGETS

    chosen.out.mkdir(exist_ok=True)
    names = chosen.targets or list(TARGETS)
    return sum(_fuzz(name, chosen.seconds, chosen.runs, chosen.out) for name in names)


def _fuzz(name: str, seconds: int, runs: int, out: Path) -> bool:
    options = [
        f"-max_total_time={seconds}", f"-runs={runs}", f"-max_len={MAX_INPUT}",
        f"-timeout={SLOW_S}", f"-rss_limit_mb={MAX_RSS_MIB}", "-print_final_stats=1",
        f"-artifact_prefix={out}/{name}-",
    ]  # fmt: skip
    began_s = time.monotonic()
    child = [sys.executable, "-m", "tests.fuzz.child", name, *options]
    done = subprocess.run(child, capture_output=True, text=True, errors="replace")
    found = _last(r"SUMMARY: (.*)", done.stderr) if done.returncode else ""
    print(
        f"fuzz {name:<12} {_last(r'number_of_executed_units: (.*)', done.stderr):>9} inputs in"
        f" {time.monotonic() - began_s:4.0f} s, coverage {_last(r'cov: ([0-9]+)', done.stderr)},"
        f" slowest {_last(r'slowest_unit_time_sec: (.*)', done.stderr)} s,"
        f" peak {_last(r'peak_rss_mb: (.*)', done.stderr)} MiB:"
        f" {'FOUND ' + found if done.returncode else 'nothing found'}",
        flush=True,
    )
    if done.returncode:
        print(done.stderr[-4000:] + done.stdout[-4000:], flush=True)
    return bool(done.returncode)


def _last(pattern: str, text: str) -> str:
    found: Sequence[str] = re.findall(pattern, text)
    return found[-1].strip() if found else "?"


if __name__ == "__main__":
    sys.exit(min(main(), 1))
