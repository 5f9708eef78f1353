"""What came of the broken hand-overs run so far, kept in a file that a later run goes on with."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.cases import Course, Result


@dataclass(slots=True)
class Tally:
    """`path` has a line for the course, and one for each case. Any thread adds."""

    path: Path
    course: Course | None = None
    outcomes: dict[str, Result] = field(default_factory=dict)
    seconds: float = 0.0  # of earlier runs
    _began_s: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, path: Path) -> Tally:
        """Return what earlier runs left at `path`, or an empty tally."""
        tally = cls(path)
        for line in path.read_text().splitlines() if path.exists() else ():
            tally._take(json.loads(line))
        return tally

    def _take(self, row: dict[str, Any]) -> None:
        if "course" in row:
            self.course = Course(**row["course"])
            return
        self.seconds = max(self.seconds, row["at_s"])
        self.outcomes[row["case"]] = Result(**row["result"])

    def begin(self, course: Course) -> None:
        """Keep what there is to break."""
        self.course = course
        self._write({"course": asdict(course)})

    def add(self, case: str, result: Result) -> None:
        """Keep how a case ended."""
        with self._lock:
            self.outcomes[case] = result
            at_s = round(self.seconds + self.elapsed_s, 1)
            self._write({"case": case, "at_s": at_s, "result": asdict(result)})

    def _write(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def elapsed_s(self) -> float:
        """Seconds of this run."""
        return time.monotonic() - self._began_s

    @property
    def faults(self) -> list[str]:
        return [result.fault for result in self.outcomes.values() if result.fault]

    def __str__(self) -> str:
        count = Counter(result.guest for result in self.outcomes.values())
        unbroken = sum(not result.broken for result in self.outcomes.values())
        return (
            f"{len(self.outcomes)} hand-overs in {self.seconds + self.elapsed_s:.0f} s:"
            f" {count['moved']} guests moved, {count['stayed']} stayed, {count['']} faults;"
            f" in {unbroken} the moment to break did not come"
        )
