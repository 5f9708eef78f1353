"""A fault of this daemon in a migration: the guest goes on here, and nothing stays open."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.guests import guest, send_guest, span
from tests.peers.service_host import DEADLINE_S, pair_of_services
from xendpy.control.migrate_options import MigrateOptions
from xendpy.control.migrator import MigrateRequest
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.progress import MigrationState
from xendpy.paths import Paths


@pytest.mark.timeout(300)
async def test_a_fault_of_ours_leaves_the_guest_here_and_the_journal_closed(
    tmp_path: Path,
) -> None:
    store = StoreHypervisor(Paths(tmp_path / "a"))
    with store.restore(guest()) as session:
        # Its p2m list is longer than its memory: an encoder's assertion, no error of ours.
        send_guest(session, span(0, 32), p2m_size=64)
        session.complete()
    store.close()
    async with pair_of_services(tmp_path) as (here, there):
        transfers = here.service.parts.transfers
        request = MigrateRequest(destination="b")
        number = await transfers.start("web01", request, MigrateOptions())
        with pytest.raises(AssertionError):
            await transfers.outcome(number)
        (row,) = here.service.parts.migrations.all()
        assert row.progress.state is MigrationState.FAILED
        assert row.progress.reason == "internal error"
        async with asyncio.timeout(DEADLINE_S):
            while transfers.open_entries():
                await asyncio.sleep(0.02)
        (found,) = here.service.parts.guests.hypervisor.domains()
        assert (found.name, found.note) == ("web01", "")
        assert there.service.parts.guests.hypervisor.domains() == []
        assert not there.service.parts.transfers.open_entries()
