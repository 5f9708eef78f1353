"""Who is in the embedded store: names, uuids, domids and room, given out without a race."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

from xendpy.errors import DomainExists, DomainNotFound, DomainStateError, OutOfMemory
from xendpy.guest.domain import Domain, DomainConfig, DomainState, DomainSummary
from xendpy.hypervisor.runner import Running
from xendpy.hypervisor.store_restore import StoreRestore
from xendpy.hypervisor.storedimage import StoredImage

LEAVING = "being saved or sent"


@dataclass(slots=True, kw_only=True)
class Incoming:
    """A guest on its way in, or being built: it has name, uuid, domid and room."""

    domid: int
    config: DomainConfig
    migration_id: str
    reserved_bytes: int
    start_time_s: float
    session: StoreRestore | None = None

    @property
    def outstanding_bytes(self) -> int:
        """What it still may take."""
        used = self.session.allocated_bytes if self.session is not None else 0
        return max(0, self.reserved_bytes - used)


@dataclass(slots=True)
class Resting:
    """A guest at rest; `busy` says what is being done with it, in words for an error.

    `leaving` is the id of the migration by which it is being sent.
    """

    image: StoredImage
    busy: str = ""
    leaving: str = ""

    @property
    def domid(self) -> int:
        return self.image.state.domid

    @property
    def config(self) -> DomainConfig:
        return self.image.config


@dataclass(slots=True)
class Executing:
    """A guest that the runner executes."""

    running: Running
    busy: str = ""
    leaving: str = ""

    @property
    def domid(self) -> int:
        return self.running.domid

    @property
    def config(self) -> DomainConfig:
        return self.running.config


@dataclass(slots=True)
class GuestTable:
    """The guests by domid. Every step is atomic; none waits for disk or network."""

    _incoming: dict[int, Incoming] = field(default_factory=dict)
    _live: dict[int, Resting | Executing] = field(default_factory=dict)
    _new_names: dict[int, str] = field(default_factory=dict)
    _next_domid: int = 1
    _lock: Lock = field(default_factory=Lock)

    def reserve(
        self, config: DomainConfig, *, migration_id: str, bytes_: int, free: int, now_s: float
    ) -> Incoming:
        """Give a new guest its name, uuid, domid and room, until `release` or `settle`.

        `free` is what the disk has for guests, those on their way in not subtracted.

        Raises:
            DomainExists: name or uuid is taken.
            OutOfMemory: no room.
        """
        with self._lock:
            self._check_clash(config, migration_id)
            left = free - self._outstanding()
            if bytes_ > left:
                raise OutOfMemory(
                    f"'{config.name}' needs {bytes_ >> 20} MiB, the store has"
                    f" {max(0, left) >> 20} MiB left",
                    wanted_bytes=bytes_,
                    free_bytes=max(0, left),
                )
            incoming = Incoming(
                domid=self._next_domid,
                config=config,
                migration_id=migration_id,
                reserved_bytes=bytes_,
                start_time_s=now_s,
            )
            self._next_domid += 1
            self._incoming[incoming.domid] = incoming
            return incoming

    def release(self, incoming: Incoming) -> None:
        """Give back what `reserve` gave, unless the guest settled."""
        with self._lock:
            self._incoming.pop(incoming.domid, None)

    def settle(self, guest: Resting | Executing) -> None:
        """Enter a live guest, in the place of its reservation or of itself in another form."""
        with self._lock:
            self._incoming.pop(guest.domid, None)
            self._live[guest.domid] = guest
            self._next_domid = max(self._next_domid, guest.domid + 1)

    def remove(self, domid: int) -> None:
        """Forget a live guest."""
        with self._lock:
            self._live.pop(domid, None)

    @contextmanager
    def claimed(
        self, domain: Domain, purpose: str, leaving: str = ""
    ) -> Iterator[Resting | Executing]:
        """Keep a live guest from other work; `leaving` is the migration that takes it away.

        Raises:
            DomainNotFound: it is gone.
            DomainStateError: other work is being done.
        """
        with self._lock:
            guest = self._get(domain)
            if guest.busy:
                raise DomainStateError(
                    domain.name, f"Domain '{domain.name}' is {guest.busy}.", actual=guest.busy
                )
            guest.busy, guest.leaving = purpose, leaving
        try:
            yield guest
        finally:
            # A guest at rest that was started is another object by this time.
            guest = self._live.get(domain.domid, guest)
            guest.busy = guest.leaving = ""

    def get(self, domain: Domain) -> Resting | Executing:
        """Return a live guest.

        Raises:
            DomainNotFound: it is gone.
        """
        with self._lock:
            return self._get(domain)

    def executing(self, domid: int) -> Executing | None:
        """Return the live guest with that domid if a runner executes it."""
        with self._lock:
            guest = self._live.get(domid)
        return guest if isinstance(guest, Executing) else None

    def find(self, name_or_id: str) -> Domain:
        """Return a live guest by name, then domid, then uuid; of two copies the older.

        Raises:
            DomainNotFound: there is none.
        """
        with self._lock:
            guests = sorted(self._live.values(), key=lambda guest: guest.domid)
            for guest in guests:
                if guest.config.name == name_or_id:
                    return as_domain(guest)
            for guest in guests:
                if str(guest.domid) == name_or_id:
                    return as_domain(guest)
            for guest in guests:
                if guest.config.uuid == name_or_id.lower():
                    return as_domain(guest)
        raise DomainNotFound(name_or_id)

    @contextmanager
    def holding_name(self, name: str, domain: Domain) -> Iterator[None]:
        """Keep `name` for `domain`, which is about to take it.

        Raises:
            DomainExists: another guest has it.
        """
        with self._lock:
            for domid, other in self._names():
                if domid != domain.domid and other == name:
                    raise _name_taken(name, domid)
            self._new_names[domain.domid] = name
        try:
            yield
        finally:
            with self._lock:
                self._new_names.pop(domain.domid, None)

    def live(self) -> list[Resting | Executing]:
        """Return the live guests by domid."""
        with self._lock:
            return sorted(self._live.values(), key=lambda guest: guest.domid)

    def incoming(self) -> list[Incoming]:
        """Return the guests on their way in by domid."""
        with self._lock:
            return sorted(self._incoming.values(), key=lambda guest: guest.domid)

    def outstanding_bytes(self) -> int:
        """Return the room that guests on their way in still may take."""
        with self._lock:
            return self._outstanding()

    def _outstanding(self) -> int:
        return sum(guest.outstanding_bytes for guest in self._incoming.values())

    def _get(self, domain: Domain) -> Resting | Executing:
        guest = self._live.get(domain.domid)
        if guest is None or guest.config.uuid != domain.uuid:
            raise DomainNotFound(domain.name)
        return guest

    def _configs(self) -> Iterator[tuple[int, DomainConfig]]:
        for incoming in self._incoming.values():
            yield incoming.domid, incoming.config
        for guest in self._live.values():
            yield guest.domid, guest.config

    def _names(self) -> Iterator[tuple[int, str]]:
        yield from ((domid, config.name) for domid, config in self._configs())
        yield from self._new_names.items()

    def _check_clash(self, config: DomainConfig, migration_id: str) -> None:
        for domid, other in self._configs():
            if self._is_leaving(domid, config, migration_id):
                continue
            if other.uuid == config.uuid:
                raise DomainExists(
                    config.name, f"Domain '{config.name}' already exists with ID '{domid}'"
                )
        for domid, name in self._names():
            if name == config.name and not self._is_leaving(domid, config, migration_id):
                raise _name_taken(name, domid)

    def _is_leaving(self, domid: int, config: DomainConfig, migration_id: str) -> bool:
        """Whether that guest is the source of this very migration, to its own host."""
        guest = self._live.get(domid)
        if guest is None or guest.config.uuid != config.uuid:
            return False
        return guest.leaving == migration_id != ""


def as_domain(guest: Resting | Executing | Incoming) -> Domain:
    """Return what callers name a guest by."""
    return Domain(domid=guest.domid, uuid=guest.config.uuid, name=guest.config.name)


def summary(guest: Resting | Executing | Incoming) -> DomainSummary:
    """Return what an operator is told of a guest."""
    state, cpu_time_s, note = DomainState.INCOMING, 0.0, ""
    match guest:
        case Incoming():
            start_time_s = guest.start_time_s
        case Resting():
            stored = guest.image.state
            state, start_time_s, note = DomainState.PAUSED, stored.start_time_s, stored.held
        case Executing():
            running = guest.running
            state, start_time_s, note = running.state, running.start_time_s, running.note
            cpu_time_s = running.cpu_time_s
    config = guest.config
    return DomainSummary(
        domid=guest.domid,
        uuid=config.uuid,
        name=config.name,
        state=state,
        memory_mib=config.memory_mib,
        maxmem_mib=config.maxmem_mib,
        vcpus=config.vcpus,
        online_vcpus=config.online_vcpus,
        cpu_time_s=cpu_time_s,
        start_time_s=start_time_s,
        config=config,
        note=note,
        at_rest=isinstance(guest, Resting),
        received=True,  # all but test guests were, and those have no paths to be confined
    )


def check_not_held(guest: Resting | Executing) -> None:
    """Check that nobody else may own the guest.

    Raises:
        DomainStateError: it is held; the text says why.
    """
    found = summary(guest)
    if found.note:
        raise DomainStateError(
            found.name,
            f"Domain '{found.name}' is held, because another host may own it: {found.note}",
            actual="held",
        )


def _name_taken(name: str, domid: int) -> DomainExists:
    return DomainExists(name, f"VM name '{name}' already exists as domain {domid}")
