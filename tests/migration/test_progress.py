"""Snapshots, and the two lines a migration writes."""

from __future__ import annotations

import pytest

from xendpy.migration.progress import (
    DowntimeReport,
    MigrationProgress,
    MigrationState,
    log_begin,
    log_end,
)

PROGRESS = MigrationProgress(
    migration_id="7",
    peer="10.0.0.4:700",
    state=MigrationState.DONE,
    name="web1",
    uuid="6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10",
    bytes_done=4 << 20,
    pages=1024,
    iteration=4,
    elapsed_s=2.0,
)


def test_rate_is_bytes_by_seconds_and_none_at_the_beginning() -> None:
    assert PROGRESS.rate_bytes_per_s == 2 << 20
    assert MigrationProgress(migration_id="1", peer="").rate_bytes_per_s == 0.0


def test_only_three_states_are_final() -> None:
    final = {state for state in MigrationState if state.final}
    assert final == {MigrationState.DONE, MigrationState.FAILED, MigrationState.ABORTED}


def test_downtime_is_the_sum_of_what_is_known() -> None:
    assert DowntimeReport(last_iteration_s=0.25, vcpu_state_s=0.5).total_s == 0.75


def test_begin_and_end_are_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    log_begin(PROGRESS)
    log_end(PROGRESS, DowntimeReport(last_iteration_s=0.25))
    begin, end = caplog.messages
    assert begin == (
        "migration 7: receiving web1 (6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10) from 10.0.0.4:700"
    )
    assert end == (
        "migration 7: web1 from 10.0.0.4:700 done; 1024 pages in 5 rounds, 4194304 bytes, 2.0 s,"
        " 2.0 MiB/s, downtime 250 ms"
    )
