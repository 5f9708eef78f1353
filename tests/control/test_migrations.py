from __future__ import annotations

import gc
import weakref
import xmlrpc.client
from dataclasses import replace

from xendpy.control.migrations import HISTORY, Migration, Migrations, Way, succeeded
from xendpy.control.xmlrpc import encode_result
from xendpy.migration.progress import MigrationProgress, MigrationState

LARGE = 1 << 40


class Running:
    """A migration whose worker replaces its snapshot."""

    def __init__(self, number: int, way: Way = Way.OUT) -> None:
        self.progress = MigrationProgress(migration_id=str(number), peer="b", name="web1")
        self.aborted: list[str] = []
        self.row = Migration(way=way, look=lambda: self.progress, abort=self.aborted.append)


def test_rows_show_the_latest_snapshot_and_then_the_last() -> None:
    table, running = Migrations(), Running(1)
    table.add(running.row)
    running.progress = replace(running.progress, state=MigrationState.PRECOPY, iteration=2)
    assert [row.progress.iteration for row in table.all()] == [2]
    running.progress = replace(running.progress, state=MigrationState.DONE)
    table.end(running.row)
    running.progress = replace(running.progress, iteration=9)
    (row,) = table.all()
    assert (row.progress.iteration, succeeded(row)) == (2, True)
    assert table.running() == []


def test_nothing_of_a_worker_outlives_its_migration() -> None:
    table, running = Migrations(), Running(1)
    table.add(running.row)
    table.end(running.row)
    worker = weakref.ref(running)
    del running
    gc.collect()
    assert worker() is None
    found = table.find("1")
    assert found is not None
    assert (found.progress.name, found.abort("operator")) == ("web1", False)


def test_of_one_that_leaves_and_comes_here_the_leaving_side_is_found() -> None:
    table = Migrations()
    rows = {way: Running(1, way).row for way in (Way.OUT, Way.IN)}
    for row in rows.values():
        table.add(row)
    assert table.find("1") is rows[Way.OUT]
    table.end(rows[Way.OUT])
    assert [row.way for row in table.running()] == [Way.IN]
    assert table.find("1") is rows[Way.OUT]
    table.end(rows[Way.IN])
    assert table.find("1") is rows[Way.OUT]
    assert table.find("2") is None


def test_history_is_bounded() -> None:
    table = Migrations()
    for number in range(HISTORY + 3):
        running = Running(number)
        table.add(running.row)
        table.end(running.row)
    assert [row.id for row in table.all()][:: HISTORY - 1] == ["3", str(HISTORY + 2)]
    assert len(table.all()) == HISTORY


def test_listeners_hear_of_changes_and_ends() -> None:
    changes: list[int] = []
    ends: list[str] = []
    table = Migrations(lambda: changes.append(len(table.running())))
    table.on_end(lambda row: ends.append(row.id))
    running = Running(1)
    table.add(running.row)
    table.end(running.row)
    assert changes == [1, 0]
    assert ends == ["1"]


def test_large_numbers_cross_xml_rpc() -> None:
    running = Running(1)
    running.progress = replace(
        running.progress, bytes_done=LARGE, pages=LARGE, total_pages=LARGE, elapsed_s=2.0
    )
    (row,), _ = xmlrpc.client.loads(encode_result([running.row.as_struct()])[:])
    assert row[0]["bytes"] == str(LARGE)
    assert row[0]["rate"] == str(LARGE // 2)
    assert row[0]["direction"] == "out"
    assert row[0]["state"] == "connecting"


def test_summary_is_one_line() -> None:
    table = Migrations()
    assert table.summary() == "idle"
    for number, way in enumerate((Way.IN, Way.OUT, Way.OUT, Way.OUT)):
        table.add(Running(number, way).row)
    assert table.summary().startswith("1 incoming, 3 outgoing (web1 0 MiB/s, ")
    assert "\n" not in table.summary()
