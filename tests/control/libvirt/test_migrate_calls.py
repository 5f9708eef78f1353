"""What a client is told of a migration under way."""

from __future__ import annotations

import pytest

from xendpy.control.libvirt.migrate_calls import _figures
from xendpy.guest.pages import PAGE_SIZE
from xendpy.migration.progress import MigrationProgress

MOMENTS = [
    ("nothing-known", {}, (0, 0, 0)),
    ("not-begun", {"total_pages": 8}, (8, 0, 8)),
    ("first-round", {"total_pages": 8, "pages": 3, "remaining_pages": 5}, (8, 3, 5)),
    ("sent-again", {"total_pages": 8, "pages": 8, "remaining_pages": 2}, (10, 8, 2)),
    ("toolstack", {"total_pages": 8, "pages": 9, "remaining_pages": None}, (10, 9, 1)),
    ("all", {"total_pages": 8, "pages": 10}, (10, 10, 0)),
]


@pytest.mark.parametrize(
    ("values", "pages"),
    [row[1:] for row in MOMENTS],
    ids=[row[0] for row in MOMENTS],
)
def test_memory_adds_up_at_every_moment(
    values: dict[str, int], pages: tuple[int, int, int]
) -> None:
    progress = MigrationProgress(migration_id="1", peer="et-virt08", **values)  # type: ignore[arg-type]
    assert _figures(progress) == tuple(count * PAGE_SIZE for count in pages)
