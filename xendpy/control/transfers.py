"""The migrations of this host that go out: started, cancelled, resolved, settled.

Used in the event loop's thread; the work is done by threads. A migration goes on when whoever
asked for it goes away.
"""

from __future__ import annotations

import asyncio
import logging

from xendpy.control.dialling import Dialler, Order, choose_peer
from xendpy.control.guests import Guests
from xendpy.control.migrate_options import MigrateOptions
from xendpy.control.migrations import Migration, Migrations, Way
from xendpy.control.migrator import MigrateRequest
from xendpy.control.outbound import Outgoing, Sender
from xendpy.control.ownership import Ownership
from xendpy.control.resolver import Resolver
from xendpy.errors import DomainError, MigrationError, XendError
from xendpy.guest.domain import Domain, DomainSummary
from xendpy.migration.handover import Direction, Entry, new_id
from xendpy.migration.home import with_home
from xendpy.migration.journal import Journal
from xendpy.migration.preflight import Check
from xendpy.migration.send import CancelToken, MigrationPlan
from xendpy.relocation.outgoing import Outcome

log = logging.getLogger(__name__)


class Transfers:
    """Everything that goes out of this host; the `Migrator` of the service calls."""

    def __init__(
        self,
        guests: Guests,
        journal: Journal,
        migrations: Migrations,
        dialler: Dialler,
    ) -> None:
        self._guests = guests
        self._journal = journal
        self._migrations = migrations
        self._dialler = dialler
        self._sender = Sender(guests.hypervisor, journal, dialler)
        self._ownership = Ownership(guests.hypervisor, journal, guests.workers)
        self._running: dict[str, tuple[Outgoing, asyncio.Task[Outcome]]] = {}
        self._beginning: set[str] = set()  # in the journal, perhaps, and not running yet
        self.resolver = Resolver(self.open_entries, self._ownership, dialler, guests.workers)
        self._held: set[str] = set()
        self._draining = False

    @property
    def ownership(self) -> Ownership:
        return self._ownership

    async def migrate(self, guest: DomainSummary, request: MigrateRequest) -> None:
        """Send a guest away and wait; the caller holds it. Cancelling cancels the migration.

        Raises:
            MigrationError: it stays here, or who owns it is in doubt; the text says which.
        """
        outgoing, task = await self._begin(guest, request, MigrateOptions())
        try:
            outcome = await asyncio.shield(task)
        except asyncio.CancelledError:
            outgoing.cancel.cancel("shutdown")
            await asyncio.wait([task])
            raise
        if outcome is Outcome.IN_DOUBT:
            raise MigrationError(self.doubt(outgoing.entry.id), migration_id=outgoing.entry.id)

    def doubt(self, entry_id: str) -> str:
        """Return what the operator is told of a migration in doubt."""
        entry = self._journal.get(entry_id, Direction.OUT)
        assert entry is not None
        return (
            f"{entry.name} is suspended here and may be owned by {entry.peer}: {entry.reason};"
            f" see `xm migrations`"
        )

    async def start(self, reference: str, request: MigrateRequest, options: MigrateOptions) -> str:
        """Begin a migration that goes on by itself, and return its id."""
        started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._detached(reference, request, options, started))
        task.add_done_callback(_consume)
        return await started

    async def _detached(
        self,
        reference: str,
        request: MigrateRequest,
        options: MigrateOptions,
        started: asyncio.Future[str],
    ) -> None:
        begun = ""
        try:
            async with self._guests.leaving(reference, request) as guest:
                outgoing, task = await self._begin(guest, request, options)
                begun = outgoing.entry.id
                self._held.add(begun)
                started.set_result(begun)
                outcome = await asyncio.shield(task)
                if outcome is not Outcome.MOVED:
                    raise MigrationError("in doubt")
        except XendError as error:
            if not started.done():
                started.set_exception(error)
        except BaseException:
            if not started.done():
                started.cancel()
            raise
        finally:
            self._held.discard(begun)

    async def _begin(
        self, guest: DomainSummary, request: MigrateRequest, options: MigrateOptions
    ) -> tuple[Outgoing, asyncio.Task[Outcome]]:
        if self._draining:
            raise MigrationError("the daemon is stopping")
        order = self._order(guest, request, options)
        entry_id = new_id()
        self._beginning.add(entry_id)
        try:
            outgoing = await self._guests.workers.quick(self._sender.begin, entry_id, order)
            migration = Migration(
                way=Way.OUT, look=lambda: outgoing.watch.progress, abort=outgoing.cancel.cancel
            )
            self._migrations.add(migration)
            task = asyncio.create_task(self._run(outgoing, migration))
            self._running[entry_id] = (outgoing, task)
        finally:
            self._beginning.discard(entry_id)
        return outgoing, task

    def _order(
        self, guest: DomainSummary, request: MigrateRequest, options: MigrateOptions
    ) -> Order:
        assert guest.domid is not None
        config = self._dialler.config
        plan = MigrationPlan(
            live=request.live,
            limits=options.limits,
            bandwidth_bytes_per_s=options.bandwidth_bytes_per_s,
            verdict_timeout_s=config.verdict_timeout_s,
            compress=options.compress,
            streams=options.streams,
            lossy=options.lossy,
        )
        peer = choose_peer(
            config,
            request.destination,
            port=request.port,
            release=options.release,
            tool_bits=options.tool_bits,
            tls=request.tls,
        )
        sent = guest.config
        if request.node >= 0:
            sent = sent.with_values(node=request.node)
        if request.name:
            sent = sent.renamed(request.name)
        sent = with_home(sent, moves=request.change_home_server)
        return Order(Domain(domid=guest.domid, uuid=guest.uuid, name=guest.name), sent, peer, plan)

    async def _run(self, outgoing: Outgoing, migration: Migration) -> Outcome:
        def shut_down() -> None:
            outgoing.cancel.cancel("shutdown")

        try:
            return await self._guests.workers.long(lambda: self._sender.run(outgoing), shut_down)
        finally:
            del self._running[outgoing.entry.id]
            self._migrations.end(migration)
            self.resolver.wake()

    async def outcome(self, migration_id: str) -> Outcome:
        """Wait for a migration under way; who stops waiting does not stop it.

        Raises:
            MigrationError: it failed, or there is none with that id under way.
        """
        running = self._running.get(migration_id)
        if running is None:
            raise MigrationError(f"no migration {migration_id} is under way")
        return await asyncio.shield(running[1])

    def hurry(self, uuid: str) -> bool:
        """Have a guest's migration stop it after this iteration; False if none is under way."""
        found = self._tokens(uuid)
        for token in found:
            token.hurried = True
        return bool(found)

    def allow_downtime(self, uuid: str, seconds: float) -> None:
        """Let a guest's migration under way, if there is one, stop it for that long."""
        for token in self._tokens(uuid):
            token.max_downtime_s = seconds

    def allow_bandwidth(self, uuid: str, bytes_per_s: int) -> None:
        """Let a guest's migration under way, if there is one, go at that rate; 0 = any."""
        for token in self._tokens(uuid):
            token.bandwidth_bytes_per_s = bytes_per_s

    def _tokens(self, uuid: str) -> list[CancelToken]:
        return [out.cancel for out, _ in self._running.values() if out.entry.uuid == uuid]

    def cancel(self, migration_id: str, by: str) -> bool:
        """Cancel a migration under way; False if it is being handed over, or over.

        Raises:
            MigrationError: there is none with that id under way.
        """
        running = self._running.get(migration_id)
        if running is None:
            raise MigrationError(f"no migration {migration_id} is under way")
        return running[0].cancel.cancel(by)

    def holds(self, migration_id: str) -> bool:
        """Say whether a migration that was started still keeps its guest from everything else."""
        return migration_id in self._held

    def entry(self, migration_id: str) -> Entry | None:
        """Return what the journal says of a migration, the source's side first."""
        found = self._journal.get(migration_id, Direction.OUT)
        return found or self._journal.get(migration_id, Direction.IN)

    async def drain(self, grace_s: float) -> None:
        """Begin nothing any more; what goes out has `grace_s` seconds to arrive.

        What is left then is cancelled, except what is being handed over already: that is waited
        for. May be called again meanwhile, with less.
        """
        self._draining = True
        running = list(self._running.values())
        if running and grace_s > 0:
            await asyncio.wait([task for _, task in running], timeout=grace_s)
        for outgoing, _ in running:
            outgoing.cancel.cancel("shutdown")
        if running:
            await asyncio.wait([task for _, task in running])

    async def look(
        self, reference: str, request: MigrateRequest, options: MigrateOptions
    ) -> list[Check]:
        """Return what preflight finds on both sides, without sending anything."""
        guest = await self._guests.get(reference)
        if guest.domid is None or guest.domid == 0:
            raise DomainError(guest.name, f"Domain '{guest.name}' is not running")
        order = self._order(guest, request, options)
        workers = self._guests.workers
        return await workers.quick(self._dialler.look, order, new_id())

    async def settle(self, prefix: str, choice: str) -> Entry:
        """Let an operator decide who owns a guest in doubt; see Ownership.settle."""
        entry = self._journal.find(prefix)
        if self._is_under_way(entry):
            raise MigrationError(f"migration {entry.id} is still under way")
        settled = await self._ownership.settle(entry, choice)
        self.resolver.wake()
        return settled

    def open_entries(self) -> list[Entry]:
        """Return what the journal has not closed, except what is under way; oldest first."""
        return [entry for entry in self._journal.open_entries() if not self._is_under_way(entry)]

    def _is_under_way(self, entry: Entry) -> bool:
        return entry.id in self._running or entry.id in self._beginning

    def closed_entries(self) -> list[Entry]:
        """Return the hand-overs that came to their end; oldest first."""
        return [entry for entry in self._journal.entries() if entry.closed]


def _consume(task: asyncio.Task[None]) -> None:
    # A detached migration has told whoever looks at the table; nobody awaits it.
    if not task.cancelled() and task.exception() is not None:
        log.error("a migration ended by a fault of this daemon", exc_info=task.exception())
