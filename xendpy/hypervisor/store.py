"""The embedded store: guests at rest on this host's disk, and those a runner executes.

Needs no hypervisor. A guest comes in, rests durably, and leaves; only guests that the runner
knows can run. Any thread, one per guest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import time

from xendpy.guest.domain import Domain, DomainConfig, GuestType
from xendpy.hypervisor.base import Capabilities, PageSource, Placement, RecordSource
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.runner import GuestRunner, Running
from xendpy.hypervisor.statelock import StateLock, host_id
from xendpy.hypervisor.store_arriving import ArrivingRestore
from xendpy.hypervisor.store_execution import StoreExecution
from xendpy.hypervisor.store_guests import StoreGuests
from xendpy.hypervisor.store_resting import RestingRecords, RestingSource, resting_source
from xendpy.hypervisor.store_restore import StoreRestore
from xendpy.hypervisor.store_save import RunningSource
from xendpy.hypervisor.store_table import (
    LEAVING,
    Executing,
    Incoming,
    Resting,
    as_domain,
    check_not_held,
)
from xendpy.hypervisor.storedimage import ImageState, StoredImage
from xendpy.hypervisor.storedir import StoreDirectory, translated
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.paths import Paths

MAX_PARTIALS = 8
PARTIALS_SHARE = 0.1  # of the file system


class StoreHypervisor(StoreGuests):
    """The driver of the embedded store; hypervisor.base.Hypervisor.

    `host_id` is the uuid of this state directory.
    """

    name = "store"

    def __init__(
        self,
        paths: Paths,
        *,
        runner: GuestRunner | None = None,
        durable: Durable | None = None,
        max_partials: int = MAX_PARTIALS,
        partials_share: float = PARTIALS_SHARE,
        rules: GuestRules | None = None,
    ) -> None:
        """Lock the state directory and bring what an earlier daemon left to an end.

        `rules` say of which disks a sender may be told: none is attached here.

        Raises:
            HypervisorUnavailable: another daemon uses the directory.
            HypervisorError: the directory cannot be used.
        """
        self._runs_guests = runner is not None
        self._rules = rules or GuestRules()
        self._durable = durable or Durable()
        directory = StoreDirectory(
            paths.store_dir,
            self._durable,
            max_partials=max_partials,
            partials_share=partials_share,
        )
        super().__init__(directory, StoreExecution(runner, directory))
        with translated("open", self._directory):
            self._durable.mkdir(paths.store_dir)
            self._lock = StateLock(paths.state_dir)
        try:
            with translated("open", self._directory):
                self.host_id = host_id(paths.state_dir, self._durable)
                self._load()
        except BaseException:
            self._lock.release()
            raise

    def capabilities(self) -> Capabilities:
        """Return what this store can do, and the room of its file system."""
        with translated("capabilities", self._directory):
            free = self._directory.free_bytes() - self._table.outstanding_bytes()
            return Capabilities(
                guest_types=frozenset(GuestType),
                live_save=frozenset(GuestType) if self._runs_guests else frozenset(),
                runs_guests=self._runs_guests,
                free_memory_bytes=max(0, free),
                total_memory_bytes=self._directory.total_bytes(),
            )

    def place(self, config: DomainConfig) -> Placement:
        """Say how a guest would fit here: nothing of its surroundings is needed."""
        return Placement(allows_disk=self._rules.allows_disk)

    @contextmanager
    def restore(self, config: DomainConfig, *, migration_id: str = "") -> Iterator[StoreRestore]:
        """Take a guest in; see hypervisor.base."""
        on_disk = 0 if self._execution.can_run(config) else config.memory_mib << 20
        incoming = self._reserve(config, migration_id, on_disk)
        try:
            session = self._begin(incoming)
            incoming.session = session
            try:
                yield session
            finally:
                session.close()
        finally:
            self._table.release(incoming)

    @contextmanager
    def save(
        self, domain: Domain, *, migration_id: str = "", live: bool = False
    ) -> Iterator[PageSource | RecordSource]:
        """Open a guest for sending or saving; whether it runs meanwhile is the caller's choice."""
        with self._table.claimed(domain, LEAVING, migration_id) as guest:
            with translated("save", self._directory):
                source = self._source(guest)
            try:
                yield source
            finally:
                source.close()

    def create(self, config: DomainConfig) -> Domain:
        """Build a new guest, paused, if the runner can execute it."""
        self._execution.check_can_boot(config)
        incoming = self._reserve(config, "", 0)
        try:
            running = self._execution.create(config, domid=incoming.domid)
            return self._enter(Executing(running))
        finally:
            self._table.release(incoming)

    def close(self) -> None:
        """Let another daemon use the state directory; guests stay as they are."""
        self._exits.close()
        for guest in self._table.live():
            if isinstance(guest, Executing):
                guest.running.close()
        self._lock.release()

    def _load(self) -> None:
        adopted = self._execution.adopt()
        self._directory.prepare(time())
        for image in self._directory.whole():
            self._table.settle(Resting(image))
        for running in adopted:
            self._enter(Executing(running))

    def _reserve(self, config: DomainConfig, migration_id: str, bytes_: int) -> Incoming:
        with translated("restore", self._directory):
            free = self._directory.free_bytes()
        return self._table.reserve(
            config, migration_id=migration_id, bytes_=bytes_, free=free, now_s=time()
        )

    def _begin(self, incoming: Incoming) -> StoreRestore:
        state = ImageState(
            domid=incoming.domid,
            start_time_s=incoming.start_time_s,
            migration_id=incoming.migration_id,
        )
        with translated("restore", self._directory):
            image = self._directory.begin(incoming.config, state)
            try:
                return self._session(image)
            except BaseException:
                self._directory.discard(image.path)
                raise

    def _session(self, image: StoredImage) -> StoreRestore:
        arriving = self._execution.receive(image)
        if arriving is None:
            return StoreRestore(self._directory, image, self._arrived)
        try:
            return ArrivingRestore(self._directory, image, arriving, self._started)
        except BaseException:
            arriving.discard()
            raise

    def _arrived(self, image: StoredImage) -> Domain:
        guest = Resting(image)
        self._table.settle(guest)
        return as_domain(guest)

    def _started(self, image: StoredImage, running: Running) -> Domain:
        self._execution.replace(image, running)
        return self._enter(Executing(running))

    def _source(
        self, guest: Resting | Executing
    ) -> RestingSource | RestingRecords | RunningSource:
        check_not_held(guest)
        if isinstance(guest, Executing):
            return RunningSource(guest.running, on_relinquish=lambda: self._destroy(guest))
        return resting_source(
            guest.image,
            on_relinquish=lambda: self._destroy(guest),
            on_hold=lambda reason: self._hold(guest, reason),
        )
