"""What a client is told of a migration under way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.control.libvirt.client import Client
from xendpy.control.guests import Guests
from xendpy.control.libvirt.migrate_calls import PERSIST_DEST, _figures
from xendpy.control.libvirt.wire import Status
from xendpy.control.libvirt.xdr import Writer
from xendpy.guest.origin import is_received
from xendpy.guest.pages import PAGE_SIZE
from xendpy.migration.progress import MigrationProgress

FINISH = 63
MOMENTS = [
    ("nothing-known", {}, (0, 0, 0)),
    ("not-begun", {"total_pages": 8}, (8, 0, 8)),
    ("first-round", {"total_pages": 8, "pages": 3, "remaining_pages": 5}, (8, 3, 5)),
    ("sent-again", {"total_pages": 8, "pages": 8, "remaining_pages": 2}, (10, 8, 2)),
    ("toolstack", {"total_pages": 8, "pages": 9, "remaining_pages": None}, (10, 9, 1)),
    ("all", {"total_pages": 8, "pages": 10}, (10, 10, 0)),
]


async def test_guest_that_came_to_stay_is_kept_as_received(sockets: Path, guests: Guests) -> None:
    client = await (await Client.connect(sockets)).opened()
    body = Writer().string("web1").opaque(b"").string("").u64(PERSIST_DEST).data()
    assert (await client.call(FINISH, body)).status == Status.OK
    client.close()
    (kept,) = guests.managed.all()
    assert is_received(kept)


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
