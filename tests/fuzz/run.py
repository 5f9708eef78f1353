"""Coverage-guided fuzzing by atheris, bounded in time: `make fuzz`.

    python -m tests.fuzz.run [TARGET ...] [--seconds N] [--runs N] [--out DIR]

Each target has a process of its own and ends with one line: inputs, seconds, what was found. An
input that takes over a second of the processor's time, or a process over 1 GiB, is a find as
well; its input is kept below DIR.

DIR keeps the inputs that reached new code, and a line for each run in `runs.jsonl`: a later run
goes on from there, until a target has had so many inputs in all. What was read back from DIR
counts once.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_INPUT = 64 << 10  # bytes
MAX_RSS_MIB = 1024
HANGING_S = 60  # by the clock; see child.py for what is slow
LOG = "runs.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One process: how many inputs were new to it, and what was found."""

    target: str
    inputs: int
    seconds: int
    coverage: int
    slowest_s: int
    peak_mib: int
    found: str


def main() -> int:
    """Fuzz the targets one after the other; return how many had finds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "xendpy-fuzz")
    chosen = parser.parse_args()
    from tests.fuzz.targets import TARGETS

    chosen.out.mkdir(parents=True, exist_ok=True)
    names = chosen.targets or list(TARGETS)
    return sum(_fuzz(name, chosen.seconds, chosen.runs, chosen.out) for name in names)


def _fuzz(name: str, seconds: int, runs: int, out: Path) -> bool:
    before = [run for run in _runs(out) if run.target == name]
    missing = runs - sum(run.inputs for run in before)
    if missing <= 0:
        _show(name, before)
        return False
    run, said = _child(name, seconds, missing, out)
    with (out / LOG).open("a") as log:
        print(json.dumps(asdict(run)), file=log)
    _show(name, [*before, run])
    if run.found:
        print(said[-8000:], flush=True)
    return bool(run.found)


def _runs(out: Path) -> Iterator[Run]:
    if (out / LOG).exists():
        for line in (out / LOG).read_text().splitlines():
            yield Run(**json.loads(line))


def _child(name: str, seconds: int, runs: int, out: Path) -> tuple[Run, str]:
    corpus = out / name
    corpus.mkdir(exist_ok=True)
    kept = len(list(corpus.iterdir()))
    options = [
        f"-max_total_time={seconds}", f"-runs={runs + kept}", f"-max_len={MAX_INPUT}",
        f"-timeout={HANGING_S}", f"-rss_limit_mb={MAX_RSS_MIB}", "-print_final_stats=1",
        f"-artifact_prefix={out}/{name}-",
    ]  # fmt: skip
    began_s = time.monotonic()
    child = [sys.executable, "-m", "tests.fuzz.child", name, str(corpus), *options]
    done = subprocess.run(child, capture_output=True, text=True, errors="replace")
    read_back = _number(r"#(\d+)\s+INITED", done.stderr)
    run = Run(
        target=name,
        inputs=max(0, _number(r"number_of_executed_units: (\d+)", done.stderr) - read_back),
        seconds=round(time.monotonic() - began_s),
        coverage=_number(r"cov: (\d+)", done.stderr),
        slowest_s=_number(r"slowest_unit_time_sec:\s+(\d+)", done.stderr),
        peak_mib=_number(r"peak_rss_mb:\s+(\d+)", done.stderr),
        found=_found(done.stderr) if done.returncode else "",
    )
    return run, done.stderr + done.stdout


def _found(said: str) -> str:
    summaries: Sequence[str] = re.findall(r"SUMMARY: (.*)", said)
    return summaries[-1].strip() if summaries else "the process ended"


def _number(pattern: str, text: str) -> int:
    found: Sequence[str] = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def _show(name: str, runs: Sequence[Run]) -> None:
    last = runs[-1]
    print(
        f"fuzz {name:<12} {sum(run.inputs for run in runs):>9,} inputs in"
        f" {sum(run.seconds for run in runs):6,} s, coverage {last.coverage},"
        f" slowest {max(run.slowest_s for run in runs)} s,"
        f" peak {max(run.peak_mib for run in runs)} MiB:"
        f" {'FOUND ' + last.found if last.found else 'nothing found'}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(min(main(), 1))
