"""The guests of the embedded store, and what is done to them where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from xendpy.errors import DomainNotFound, DomainStateError, Unsupported
from xendpy.guest.domain import Domain, DomainState, DomainSummary
from xendpy.hypervisor.exits import ExitWatch
from xendpy.hypervisor.runner import Running
from xendpy.hypervisor.store_execution import StoreExecution
from xendpy.hypervisor.store_table import (
    Executing,
    GuestTable,
    Resting,
    as_domain,
    check_not_held,
    summary,
)
from xendpy.hypervisor.storedimage import PartialGuest
from xendpy.hypervisor.storedir import StoreDirectory, translated


class StoreGuests:
    """What rests in a directory and what a runner executes: the part that moves nothing."""

    def __init__(self, directory: StoreDirectory, execution: StoreExecution) -> None:
        self._directory = directory
        self._execution = execution
        self._table = GuestTable()
        self._exits = ExitWatch()

    # What there is

    def domains(self) -> list[DomainSummary]:
        """Return the guests that are here, ascending by domid."""
        return [summary(guest) for guest in self._table.live()]

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

    def state(self, domain: Domain) -> DomainState:
        """Return what a guest is doing; see hypervisor.base."""
        return summary(self._table.get(domain)).state

    def arrival(self, migration_id: str) -> Domain | None:
        """Return the guest that this daemon's own migration brought, if it is still here."""
        for guest in self._table.live():
            match guest:
                case Resting(image) if image.state.migration_id == migration_id != "":
                    return as_domain(guest)
                case Executing() if self._execution.came_by(guest.domid) == migration_id != "":
                    return as_domain(guest)
        return None

    # Being here

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

    def _enter(self, guest: Executing) -> Domain:
        self._table.settle(guest)
        self._exits.add(guest.domid, guest.running.exit_fd)
        return as_domain(guest)

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
