"""xendpy's own XML-RPC methods about migrations: start, watch, cancel, settle, look first."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from xendpy.control.guests import Guests
from xendpy.control.migrate_options import MigrateOptions
from xendpy.control.migrations import Migrations
from xendpy.control.migrator import MigrateRequest
from xendpy.control.transfers import Transfers
from xendpy.control.xmlrpc import Method, Value
from xendpy.errors import MigrationError
from xendpy.guest.pages import PAGE_SIZE
from xendpy.migration.handover import Entry
from xendpy.migration.progress import MigrationProgress

BY_OPERATOR = "the operator"


class TransferMethods:
    """The methods; sizes that may pass 31 bits cross as decimal strings."""

    def __init__(self, guests: Guests, migrations: Migrations, transfers: Transfers) -> None:
        self._guests = guests
        self._migrations = migrations
        self._transfers = transfers

    def table(self) -> dict[str, Method]:
        """Return every method by the name that crosses the wire."""
        return {
            "xendpy.migrate": self.migrate,
            "xendpy.preflight": self.preflight,
            "xendpy.migration": self.migration,
            "xendpy.migration.cancel": self.cancel,
            "xendpy.migration.settle": self.settle,
            "xendpy.handovers": self.handovers,
        }

    async def migrate(self, dom: Value, request: Value, options: Value) -> Value:
        """Begin a migration that goes on by itself; return its id."""
        return await self._transfers.start(str(dom), _request(request), _options(options))

    async def preflight(self, dom: Value, request: Value, options: Value) -> Value:
        """Return what both sides find, sending nothing: a list of structs."""
        checks = await self._transfers.look(str(dom), _request(request), _options(options))
        return [asdict(check) | {"status": str(check.status)} for check in checks]

    async def migration(self, migration_id: Value) -> Value:
        """Return one migration, running or lately ended, with its rounds and downtime.

        Raises:
            MigrationError: there is none.
        """
        found = self._migrations.find(str(migration_id))
        if found is None:
            raise MigrationError(f"no migration {migration_id} is under way or lately ended")
        entry = self._transfers.entry(found.id)
        return {
            **found.as_struct(),
            **details(found.progress),
            "ended": found.progress.state.final and not self._transfers.holds(found.id),
            "handover": None if entry is None else entry_struct(entry),
        }

    async def cancel(self, migration_id: Value) -> Value:
        """Cancel a migration; False when it is being handed over already."""
        ids = {item.id for item in self._migrations.running()}
        fitting = [item for item in ids if item.startswith(str(migration_id)) and migration_id]
        if len(fitting) != 1 or (found := self._migrations.find(fitting[0])) is None:
            raise MigrationError(f"no migration {migration_id} is under way")
        return found.abort(BY_OPERATOR) is not False

    async def settle(self, migration_id: Value, choice: Value) -> Value:
        """Decide who owns a guest in doubt: keep or discard."""
        return entry_struct(await self._transfers.settle(str(migration_id), str(choice)))

    async def handovers(self, closed: Value = False) -> Value:
        """Return the journal's entries that are not closed, or those that are; oldest first."""
        entries = self._transfers.closed_entries() if closed else self._transfers.open_entries()
        return [entry_struct(entry) for entry in entries]


def details(progress: MigrationProgress) -> dict[str, Any]:
    """Return what only `xendpy.migration` shows of a migration."""
    downtime, remaining = progress.downtime, progress.remaining_pages
    return {
        "page_size": PAGE_SIZE,
        "protocol": progress.protocol,
        "remaining_pages": None if remaining is None else str(remaining),
        "dirty_pages_per_s": progress.dirty_pages_per_s,
        "expected_downtime_s": progress.expected_downtime_s,
        "current_rate": progress.current_bytes_per_s,
        "setup_s": progress.setup_s,
        "converged": progress.converged,
        "downtime": None if downtime is None else asdict(downtime) | {"total_s": downtime.total_s},
        "rounds": [asdict(item) for item in progress.rounds],
    }


def entry_struct(entry: Entry) -> dict[str, Any]:
    """Return a journal entry as it crosses XML-RPC."""
    return asdict(entry) | {
        "direction": str(entry.direction),
        "step": str(entry.step),
        "in_doubt": entry.in_doubt,
    }


def _request(value: Value) -> MigrateRequest:
    fields = value if isinstance(value, dict) else {}
    tls = fields.get("tls")
    return MigrateRequest(
        destination=str(fields.get("destination", "")),
        live=bool(fields.get("live", False)),
        port=int(fields.get("port", 0)),
        node=int(fields.get("node", -1)),
        tls=None if tls is None else bool(tls),
        change_home_server=bool(fields.get("change_home_server", False)),
    )


def _options(value: Value) -> MigrateOptions:
    return MigrateOptions.parse(value if isinstance(value, dict) else {})
