"""The driver for a Xen host: guests are xl's, and xl is asked for everything.

Nothing about guests is kept here but notes (xlnotes): what came in by which migration, and what
is held in doubt. Any thread, one per guest.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from xendpy.errors import DomainError, DomainStateError, HypervisorError
from xendpy.guest.domain import Domain, DomainConfig, DomainState
from xendpy.guest.origin import is_received
from xendpy.hypervisor import xlleft
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.statelock import StateLock, host_id
from xendpy.hypervisor.storedimage import PartialGuest
from xendpy.hypervisor.xladmission import Admission, Incoming
from xendpy.hypervisor.xlcfg import to_cfg
from xendpy.hypervisor.xlconfig import as_created, to_json
from xendpy.hypervisor.xlguest import read_guest
from xendpy.hypervisor.xlguests import as_domain
from xendpy.hypervisor.xlholds import XlHolds, before
from xendpy.hypervisor.xllist import AWAY, INCOMING, Listed, info, list_guests
from xendpy.hypervisor.xlmigrate import XlLiveSource
from xendpy.hypervisor.xlnotes import Note, Notes
from xendpy.hypervisor.xlrestore import Building, XlRestore
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.hypervisor.xlsave import XlSource
from xendpy.hypervisor.xlspool import Spool
from xendpy.hypervisor.xltool import Tool, XlTool
from xendpy.paths import Paths

log = logging.getLogger(__name__)

CREATE_S = 300.0


class XlHypervisor(XlHolds):
    """hypervisor.base.Hypervisor over xl."""

    name = "xl"

    def __init__(
        self,
        paths: Paths,
        *,
        rules: GuestRules | None = None,
        tool: Tool | None = None,
        durable: Durable | None = None,
    ) -> None:
        """Lock the state directory; `rules` are for guests that come in.

        Raises:
            HypervisorUnavailable: xl is not there, or another daemon uses the directory.
            HypervisorError: the directory cannot be used.
        """
        self._rules = rules or GuestRules()
        self._durable = durable or Durable()
        self._spools = paths.state_dir / "incoming"
        self._leaving: dict[int, str] = {}  # domid -> migration id
        self._turn = threading.Lock()
        try:
            self._durable.mkdir(paths.state_dir)
            self._lock = StateLock(paths.state_dir)
        except OSError as error:
            raise _unusable(paths.state_dir, error) from error
        try:
            self.host_id = host_id(paths.state_dir, self._durable)
            notes = Notes(paths.state_dir / "xl", self._durable)
            super().__init__(tool or XlTool(), notes, Admission(self._rules))
            self._recover()
        except OSError as error:
            self._lock.release()
            raise _unusable(paths.state_dir, error) from error
        except BaseException:
            self._lock.release()
            raise

    def _recover(self) -> None:
        guests = list_guests(self._tool)
        self._notes.keep_only((guest.domid, guest.uuid) for guest in guests)
        xlleft.tell(self._spools, guests, self._notes)

    # Coming

    @contextmanager
    def restore(self, config: DomainConfig, *, migration_id: str = "") -> Iterator[XlRestore]:
        """Take a guest in; see hypervisor.base. What an old xend sends is kept safe beside."""
        with self._restoring(config, migration_id, safe=not migration_id) as session:
            yield session

    @contextmanager
    def restore_saved(self, config: DomainConfig) -> Iterator[XlRestore]:
        """Take a guest in from a file, which needs no second copy."""
        with self._restoring(config, "", safe=False) as session:
            yield session

    @contextmanager
    def _restoring(
        self, config: DomainConfig, migration_id: str, *, safe: bool
    ) -> Iterator[XlRestore]:
        with self._turn:
            incoming = self._admission.admit(
                config, migration_id, list_guests(self._tool), info(self._tool), self._leaving
            )
        try:
            session = self._begin(incoming, safe=safe)
            try:
                yield session
            finally:
                session.close()
        finally:
            self._admission.release(incoming)

    def _begin(self, incoming: Incoming, *, safe: bool) -> XlRestore:
        spool = self._spool(incoming) if safe else None
        building = Building(
            tool=self._tool,
            guest_type=incoming.config.guest_type,
            json=to_json(replace(incoming.guest, name=incoming.xl_name)),
            pv32=incoming.pv32,
            finish=lambda kept: self._arrived(incoming, kept, safe=safe),
            clean=lambda: self._clean(incoming),
        )
        try:
            return XlRestore(building, spool)
        except BaseException:
            if spool is not None:
                spool.discard()
                spool.close()
            raise

    def _spool(self, incoming: Incoming) -> Spool:
        with self._turn:  # two at once must not be promised the same room
            try:
                reserved = self._admission.spool_bytes()
                spool = Spool(self._spools, incoming.config, reserved_bytes=reserved)
            except OSError as error:
                raise _unusable(self._spools, error) from error
            incoming.spool = spool
        return spool

    def _arrived(self, incoming: Incoming, kept: str, *, safe: bool) -> Domain:
        guest = self._built(incoming)
        if guest is None:
            raise HypervisorError(f"xl restored {incoming.xl_name} and does not list it")
        note = Note(
            domid=guest.domid,
            uuid=guest.uuid,
            raw=incoming.config.encode().decode("latin-1"),
            migration_id=incoming.migration_id,
            start_time_s=time.time(),
            spool=kept,
            received=True,
        )
        try:
            self._notes.put(note)
        except OSError as error:
            if not safe:  # the sender waits for our word, and still has its guest
                raise
            log.error("nothing is noted of domain %d, which has arrived: %s", guest.domid, error)
        self._admission.release(incoming)
        return as_domain(guest)

    def _built(self, incoming: Incoming) -> Listed | None:
        for guest in list_guests(self._tool):
            if guest.uuid == incoming.config.uuid and guest.domid not in incoming.before:
                return guest
        return None

    def _clean(self, incoming: Incoming) -> None:
        """Remove what a killed xl could not."""
        guest = self._built(incoming)
        if guest is not None:
            log.warning("domain %d, half built, is removed", guest.domid)
            self._tool.run(["destroy", str(guest.domid)])

    def create(self, config: DomainConfig) -> Domain:
        """Build a new guest, paused; the operator's paths are the operator's business.

        Not so those of a configuration that came from another host.
        """
        received = is_received(config)
        rules = replace(self._rules, confined=self._rules.confined and received)
        guest = read_guest(config, rules)
        if guest.boot.note and not guest.boot.bootloader:
            raise DomainError(config.name, guest.boot.note)
        with tempfile.NamedTemporaryFile("w", prefix="xendpy-", suffix=".cfg") as file:
            file.write(to_cfg(guest))
            file.flush()
            self._tool.run(["create", "-p", file.name], timeout_s=CREATE_S)
        domain = self.find(config.name)
        self._notes.put(
            Note(
                domid=domain.domid,
                uuid=domain.uuid,
                raw=as_created(config).encode().decode("latin-1"),
                start_time_s=time.time(),
                received=received,
            )
        )
        return domain

    # Going

    @contextmanager
    def save(
        self, domain: Domain, *, migration_id: str = "", live: bool = False
    ) -> Iterator[XlSource]:
        """Open a guest for sending or saving; see hypervisor.base."""
        guest = self._listed(domain, with_config=True)
        note = self._check_not_held(guest)
        if guest.domid in self._leaving:
            raise DomainStateError(
                domain.name, f"Domain '{domain.name}' is being saved.", actual="leaving"
            )
        config = self._config_of(guest, note)
        note = replace(note, stopped=before(guest))
        self._leaving[guest.domid] = migration_id
        try:
            self._notes.put(note)
            if note.stopped == "paused":  # a paused guest does not answer a suspend request
                self._xl("unpause", guest.domid)
            source = (XlLiveSource if live else XlSource)(
                self._tool,
                guest.domid,
                config,
                self._spools,
                lambda how, reason: self._left(guest, note, how, reason),
            )
            try:
                yield source
            finally:
                source.close()
        finally:
            del self._leaving[guest.domid]

    def _left(self, guest: Listed, note: Note, how: str, reason: str) -> None:
        match how:
            case "relinquish":
                self._remove(guest, note)
            case "hold":
                self._keep_still(guest, replace(note, held=reason))
            case _:
                self._let_go(guest, note)

    # Being here

    def unpause(self, domain: Domain) -> None:
        """Let a guest run, by its own name.

        Raises:
            DomainStateError: who owns it is in doubt.
        """
        guest = self._listed(domain)
        note = self._check_not_held(guest)
        if guest.name.endswith(INCOMING):
            self._take_name(guest)
        self._xl("unpause", guest.domid)
        try:
            xlleft.forget(self._spools, guest.uuid)
            if note.spool:
                self._notes.put(replace(note, spool=""))
        except OSError as error:  # the guest runs all the same
            log.error(
                "%s: its save file, which nobody needs any more, stays: %s", guest.name, error
            )

    def _take_name(self, guest: Listed) -> None:
        """Give a guest that came from this very host its name, and its old copy another."""
        for other in self._live():
            if other.name == guest.plain_name and other.uuid == guest.uuid:
                self._tool.run(["rename", str(other.domid), guest.plain_name + AWAY])
        self._tool.run(["rename", str(guest.domid), guest.plain_name])

    def destroy(self, domain: Domain) -> None:
        """Remove a guest, also one held in doubt."""
        guest = self._listed(domain)
        self._remove(guest, self._notes.get(guest.domid, guest.uuid))

    def _remove(self, guest: Listed, note: Note) -> None:
        if self._state(guest) not in (None, DomainState.DYING):  # xl migrate does it itself
            self._xl("destroy", guest.domid)
        if note.spool:
            Path(note.spool).unlink(missing_ok=True)
        self._notes.remove(guest.domid)

    # Being on disk alone

    def partials(self) -> list[PartialGuest]:
        """Return the guests from old senders that are kept in a file, oldest first."""
        return xlleft.partials(self._spools, self._tool, self._admission)

    def discard_partial(self, label: str) -> None:
        """Remove the file of one of them; see xlleft.discard."""
        xlleft.discard(label, self.partials())

    def close(self) -> None:
        """Let another daemon use the state directory; guests stay as they are."""
        self._lock.release()


def _unusable(path: Path, error: OSError) -> HypervisorError:
    return HypervisorError(f"{error.filename or path}: {error.strerror}", operation="open")
