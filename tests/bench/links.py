"""Rows about what features between xendpy hosts buy on links of different speed."""

from __future__ import annotations

from tests.bench.harness import Bench


def run(bench: Bench) -> None:
    """Measure all rows."""
