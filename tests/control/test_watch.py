from __future__ import annotations

import pytest

from xendpy.cli.migrate_progress import total_downtime
from xendpy.control.watch import OutgoingWatch
from xendpy.migration.progress import DowntimeReport, MigrationProgress, Round


@pytest.fixture
def watch() -> OutgoingWatch:
    made = OutgoingWatch(MigrationProgress(migration_id="1" * 32, peer="b", total_pages=100))
    made.negotiated("xendpy")
    made.sent(4096, 1)
    return made


def reported(watch: OutgoingWatch) -> DowntimeReport:
    watch.handing_over()
    watch.running_there(0.0)
    assert watch.progress.downtime is not None
    return watch.progress.downtime


def test_a_guest_that_a_toolstack_saves_stands_still_all_the_time(watch: OutgoingWatch) -> None:
    watch.stands_still(3.0)
    watch.round_done(Round(index=0, sent_pages=100, dirtied_pages=0, seconds=2.5, last=True))
    downtime = reported(watch)
    assert 3.0 <= downtime.total_s < 60
    assert downtime.last_iteration_s == 2.5
    assert not downtime.at_least
    assert str(downtime).startswith("3")


def test_of_a_toolstacks_last_iteration_nothing_is_claimed(watch: OutgoingWatch) -> None:
    watch.stands_still(0.0)
    downtime = reported(watch)
    assert downtime.last_iteration_s is None
    assert downtime.at_least
    assert str(downtime).startswith("at least ")
    struct = {"last_iteration_s": None, "total_s": 0.25}
    assert total_downtime(struct) == "at least 250 ms"
    assert total_downtime(struct | {"last_iteration_s": 0.1}) == "250 ms"


def test_what_a_toolstacks_guest_writes_is_known_an_iteration_later(watch: OutgoingWatch) -> None:
    watch.round_done(Round(index=0, sent_pages=100, dirtied_pages=None, seconds=2.0, last=False))
    assert watch.progress.remaining_pages is None
    watch.sent(4096, 1)
    assert watch.progress.remaining_pages is None
    assert watch.progress.iteration == 1
    assert watch.progress.dirty_pages_per_s == 0
    watch.round_done(Round(index=1, sent_pages=30, dirtied_pages=None, seconds=1.0, last=False))
    assert watch.progress.dirty_pages_per_s == 15
    assert watch.progress.expected_downtime_s is None
    watch.round_done(Round(index=2, sent_pages=5, dirtied_pages=0, seconds=0.5, last=True))
    assert watch.progress.dirty_pages_per_s == 5
    assert [item.dirtied_pages for item in watch.progress.rounds] == [30, 5, 0]
    assert watch.progress.iteration == 2
    watch.stands_still(0.0)
    assert reported(watch).at_least


def test_a_downtime_that_nobody_saw_is_not_told(watch: OutgoingWatch) -> None:
    watch.running_there(0.0)
    assert watch.progress.downtime is None
