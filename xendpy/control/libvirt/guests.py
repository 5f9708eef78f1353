"""What several procedures ask of a guest, in libvirt's terms."""

from __future__ import annotations

from xendpy.control.events import EventKind
from xendpy.control.libvirt.reasons import PAUSED, RUNNING, SHUTOFF
from xendpy.control.libvirt.session import Session
from xendpy.control.libvirt.xdr import Writer
from xendpy.control.live_guests import MIGRATED
from xendpy.guest.domain import DomainState, DomainSummary

BLOCKED, SHUTDOWN, CRASHED = 2, 4, 6  # the other numbers of virDomainState
_STATES = {
    DomainState.RUNNING: RUNNING,
    DomainState.BLOCKED: BLOCKED,
    DomainState.PAUSED: PAUSED,
    DomainState.SUSPENDED: PAUSED,
    DomainState.INCOMING: PAUSED,
    DomainState.SHUTDOWN: SHUTOFF,
    DomainState.CRASHED: CRASHED,
    DomainState.DYING: SHUTDOWN,
}


def state_of(guest: DomainSummary) -> int:
    """Return a guest's state in libvirt's numbers."""
    return SHUTOFF if guest.domid is None else _STATES[guest.state]


def reason_of(session: Session, guest: DomainSummary) -> int:
    """Return libvirt's reason for a guest's state, as far as it is known; 0 = unknown."""
    moves = session.guests.operations.of(guest.uuid) == MIGRATED
    return session.host.reasons.of(guest, state_of(guest), moves=moves)


async def find(session: Session, domain: tuple[str, str, int]) -> DomainSummary:
    """Return the guest that a `nonnull_domain` means: the uuid counts."""
    return await session.view.find(domain[1])


def add_domain(writer: Writer, guest: DomainSummary) -> Writer:
    """Add a guest as a `nonnull_domain`: by its own name, also while it moves."""
    return writer.domain(guest.config.name, guest.uuid, guest.domid)


def is_persistent(session: Session, guest: DomainSummary) -> bool:
    """Say whether the guest's configuration stays when it ends."""
    return guest.domid == 0 or session.guests.managed.get(guest.uuid) is not None


def starts_by_itself(session: Session, guest: DomainSummary) -> bool:
    """Say whether the guest is started with the daemon: xend's `on_xend_start`."""
    config = session.guests.managed.get(guest.uuid)
    return config is not None and config.text("on_xend_start", "ignore") == "start"


def has_managed_save(session: Session, guest: DomainSummary) -> bool:
    """Say whether a start of the guest continues what `virsh managedsave` kept."""
    return guest.domid is None and session.guests.managed.checkpoint(guest.uuid).exists()


async def undefine(session: Session, guest: DomainSummary) -> None:
    """Forget the configuration of a managed guest, which may run or have moved away."""
    await session.guests.workers.quick(session.guests.managed.remove, guest.uuid)
    session.guests.events.emit(EventKind.UNDEFINED, guest)
