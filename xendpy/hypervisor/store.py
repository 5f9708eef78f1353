"""The embedded store: guests at rest on this host's disk, and those a runner executes.

Needs no hypervisor. A guest comes in, rests durably, and leaves; only guests that the runner
knows can run. Any thread, one per guest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import time

from xendpy.errors import DomainNotFound, DomainStateError, Unsupported
from xendpy.guest.domain import Domain, DomainConfig, DomainState, DomainSummary, GuestType
from xendpy.hypervisor.base import Capabilities, PageSource, Placement
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.exits import ExitWatch
from xendpy.hypervisor.runner import GuestRunner, Running
from xendpy.hypervisor.statelock import StateLock, host_id
from xendpy.hypervisor.store_arriving import ArrivingRestore
from xendpy.hypervisor.store_execution import StoreExecution
from xendpy.hypervisor.store_restore import StoreRestore
from xendpy.hypervisor.store_save import RestingSource, RunningSource
from xendpy.hypervisor.store_table import (
    LEAVING,
    Executing,
    GuestTable,
    Incoming,
    Resting,
    as_domain,
    check_not_held,
    summary,
)
from xendpy.hypervisor.storedimage import ImageState, PartialGuest, StoredImage
from xendpy.hypervisor.storedir import StoreDirectory, translated
from xendpy.paths import Paths

MAX_PARTIALS = 8
PARTIALS_SHARE = 0.1  # of the file system


class StoreHypervisor:
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
    ) -> None:
        """Lock the state directory and bring what an earlier daemon left to an end.

        Raises:
            HypervisorUnavailable: another daemon uses the directory.
            HypervisorError: the directory cannot be used.
        """
        self._runs_guests = runner is not None
        self._durable = durable or Durable()
        self._table = GuestTable()
        self._exits = ExitWatch()
        self._directory = StoreDirectory(
            paths.store_dir,
            self._durable,
            max_partials=max_partials,
            partials_share=partials_share,
        )
        self._execution = StoreExecution(runner, self._directory)
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
                page_access=True,
                live_save=frozenset(GuestType) if self._runs_guests else frozenset(),
                runs_guests=self._runs_guests,
                free_memory_bytes=max(0, free),
                total_memory_bytes=self._directory.total_bytes(),
            )

    def domains(self) -> list[DomainSummary]:
        """Return the guests that are here, ascending by domid."""
        return [summary(guest) for guest in self._table.live()]

    def place(self, config: DomainConfig) -> Placement:
        """Say how a guest would fit here: nothing of its surroundings is needed."""
        return Placement()

    def incoming(self) -> list[DomainSummary]:
        """Return the guests on their way in."""
        return [summary(guest) for guest in self._table.incoming()]

    def partials(self) -> list[PartialGuest]:
        """Return the guests that came in part, oldest first."""
        with translated("list", self._directory):
            return self._directory.partials()

    def discard_partial(self, label: str) -> None:
        """Remove NAME.partial.

        Raises:
            DomainNotFound: there is none.
        """
        with translated("discard", self._directory):
            for partial in self._directory.partials():
                if partial.label == label:
                    self._directory.discard(partial.path)
                    return
        raise DomainNotFound(label)

    def find(self, name_or_id: str) -> Domain:
        """Return the guest by name, then domid, then uuid."""
        return self._table.find(name_or_id)

    def arrival(self, migration_id: str) -> Domain | None:
        """Return the guest that this daemon's own migration brought, if it is still here."""
        for guest in self._table.live():
            match guest:
                case Resting(image) if image.state.migration_id == migration_id != "":
                    return as_domain(guest)
                case Executing() if self._execution.came_by(guest.domid) == migration_id != "":
                    return as_domain(guest)
        return None

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
    ) -> Iterator[PageSource]:
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

    def running(self, domain: Domain) -> Running:
        """Return the process side of a guest that the runner executes (console ...).

        Raises:
            DomainStateError: the guest only rests here.
        """
        guest = self._table.get(domain)
        if not isinstance(guest, Executing):
            raise DomainStateError(
                domain.name, f"Domain '{domain.name}' only rests here.", actual="resting"
            )
        return guest.running

    def pause(self, domain: Domain) -> None:
        """Pause a guest; one at rest is paused already."""
        guest = self._table.get(domain)
        if isinstance(guest, Executing):
            guest.running.pause()

    def unpause(self, domain: Domain) -> None:
        """Let a guest run, if the runner can execute it.

        Raises:
            DomainStateError: it only rests here, or who owns it is in doubt.
        """
        with self._table.claimed(domain, "being started") as guest:
            check_not_held(guest)
            if isinstance(guest, Resting):
                guest = self._start(guest)
            guest.running.unpause()

    def destroy(self, domain: Domain) -> None:
        """Remove a guest, also one held in doubt."""
        with self._table.claimed(domain, "being destroyed") as guest:
            self._destroy(guest)

    def hold(self, domain: Domain, reason: str) -> None:
        """Keep a guest suspended and note why: another host may own it."""
        with self._table.claimed(domain, "being held") as guest:
            if isinstance(guest, Resting):
                self._hold(guest, reason)
            else:
                if guest.running.state is not DomainState.SUSPENDED:
                    guest.running.suspend()
                guest.running.hold(reason)

    def release_hold(self, domain: Domain) -> None:
        """Give a guest held in doubt back: an operator or a peer has settled it."""
        with self._table.claimed(domain, "being released") as guest:
            if isinstance(guest, Resting):
                if guest.image.state.held:
                    self._hold(guest, "")
            elif guest.running.state is DomainState.SUSPENDED:
                guest.running.resume()

    def shutdown(self, domain: Domain, reason: str) -> None:
        """Ask the guest to end.

        Raises:
            Unsupported: it only rests here.
        """
        guest = self._table.get(domain)
        if isinstance(guest, Resting):
            raise Unsupported(
                f"Domain '{domain.name}' only rests in the embedded store: it runs nothing that"
                f" could take part in a {reason}; `xm destroy` removes it",
                operation="shutdown",
            )
        guest.running.shutdown(reason)

    def rename(self, domain: Domain, name: str) -> Domain:
        """Give a guest another name."""
        guest = self._table.get(domain)
        with self._table.holding_name(name, domain):
            if isinstance(guest, Executing):
                guest.running.rename(name)
            else:
                image = replace(guest.image, config=guest.config.renamed(name))
                with translated("rename", self._directory):
                    self._directory.write_config(image)
                guest.image = image
        return replace(domain, name=name)

    def watch_ends(self, ended: Callable[[Domain, str], None]) -> None:
        """Call `ended(guest, reason)` for each guest whose process ends by itself; call once.

        The reason is poweroff, reboot or crash. The call comes from a thread of the store, also
        for a guest that has ended before; the guest stays until it is destroyed.
        """

        def tell(domid: int) -> None:
            guest = self._table.executing(domid)
            if guest is not None:
                ended(as_domain(guest), guest.running.end_reason or "crash")

        self._exits.start(tell)

    def set_aside(self, domain: Domain, name: str, uuid: str) -> Domain:
        """Give a guest that has ended another name and uuid, so that it can be started again."""
        with self._table.holding_name(name, domain):
            self.running(domain).set_aside(name, uuid)
        return Domain(domid=domain.domid, uuid=uuid, name=name)

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

    def _enter(self, guest: Executing) -> Domain:
        self._table.settle(guest)
        self._exits.add(guest.domid, guest.running.exit_fd)
        return as_domain(guest)

    def _source(self, guest: Resting | Executing) -> RestingSource | RunningSource:
        check_not_held(guest)
        if isinstance(guest, Executing):
            return RunningSource(guest.running, on_relinquish=lambda: self._destroy(guest))
        return RestingSource(
            guest.image,
            on_relinquish=lambda: self._destroy(guest),
            on_hold=lambda reason: self._hold(guest, reason),
        )

    def _destroy(self, guest: Resting | Executing) -> None:
        with translated("destroy", self._directory):
            if isinstance(guest, Resting):
                self._directory.discard(guest.image.path)
            else:
                self._exits.forget(guest.domid)
                guest.running.destroy()
        self._table.remove(guest.domid)

    def _hold(self, guest: Resting, reason: str) -> None:
        image = replace(guest.image, state=replace(guest.image.state, held=reason))
        with translated("hold", self._directory):
            self._directory.write_state(image)
        guest.image = image

    def _start(self, guest: Resting) -> Executing:
        with translated("unpause", self._directory):
            running = self._execution.start(guest.image)
        started = Executing(running, busy=guest.busy)
        self._enter(started)
        return started
