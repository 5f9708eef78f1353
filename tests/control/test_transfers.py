"""What goes out of this host, as the rest of the daemon sees it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.control.fakes import FakeHypervisor, guest_config
from xendpy.config import XendConfig
from xendpy.control.dialling import Dialler, Order
from xendpy.control.guests import Guests
from xendpy.control.migrate_options import MigrateOptions
from xendpy.control.migrations import Migrations
from xendpy.control.migrator import MigrateRequest
from xendpy.control.outbound import Outgoing, Sender
from xendpy.control.transfers import Transfers
from xendpy.errors import MigrationError
from xendpy.hypervisor.durable import Durable
from xendpy.migration.journal import Journal
from xendpy.paths import Paths


async def test_a_migration_is_under_way_from_its_first_line_in_the_journal(
    guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver would take it for one that an earlier daemon has left, and keep its guest."""
    journal = Journal(tmp_path / "migrations", Durable(), time.time)
    dialler = Dialler("a host", XendConfig, Paths(tmp_path))
    transfers = Transfers(guests, journal, Migrations(), dialler)
    begin, seen = Sender.begin, []

    def watched(sender: Sender, entry_id: str, order: Order) -> Outgoing:
        outgoing = begin(sender, entry_id, order)
        seen.append((len(journal.open_entries()), transfers.open_entries()))
        return outgoing

    monkeypatch.setattr(Sender, "begin", watched)
    hypervisor.add(guest_config("web1"))
    await guests.unpause("web1")
    request = MigrateRequest(destination="127.0.0.1", port=1)  # where nobody listens
    with pytest.raises(MigrationError, match="refused"):
        await transfers.outcome(await transfers.start("web1", request, MigrateOptions()))
    assert seen == [(1, [])]
    assert journal.open_entries() == []
