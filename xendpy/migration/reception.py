"""Take a guest in from a sender that listens to nobody (xend 3.0.3 - 4.4).

It may have destroyed its guest the moment its last byte left. So whatever can be refused is
refused right after the configuration; a failure in mid-stream is told to the sender, whose guest
goes on, as long as no mark of the end was seen; from that mark on nothing is thrown away.

Blocking. Runs in a worker thread; only `cancel` may be called from another.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeAlias

from xendpy import sxp
from xendpy.config import XendConfig
from xendpy.errors import (
    ChannelAborted,
    DomainError,
    HypervisorError,
    MigrationAborted,
    OutOfMemory,
    XendError,
)
from xendpy.guest.domain import Domain, DomainConfig
from xendpy.guest.pages import PAGE_SIZE
from xendpy.hypervisor.base import Hypervisor, RestoreSession
from xendpy.migration.arrival import Arrival, Publish, RecentBytes
from xendpy.migration.guests_allow import EVERY_GUEST, GuestsAllow
from xendpy.migration.progress import DowntimeReport, MigrationProgress, MigrationState, log_begin
from xendpy.migration.receive import NoGuest, OpenSource, drive
from xendpy.stream.limits import DEFAULT_LIMITS, StreamLimits
from xendpy.stream.xend import decode_body, read_envelope

log = logging.getLogger(__name__)

MIB = 1 << 20
REST_SLACK_BYTES = 256 * MIB  # device model, vcpus: what follows a guest's memory at most
HOLES_PAGES = 1 << 20  # 4 GiB
NO_HURRY = nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveLimits:
    """What a guest may ask for; `max_guest_bytes` 0 = as much as the driver has room for.

    `config_timeout_s`: how long its configuration may take to come, in all.
    """

    max_config_bytes: int = 1 << 20
    max_sxp_depth: int = 64
    max_guest_bytes: int = 0
    max_device_model_bytes: int = 128 * MIB
    config_timeout_s: float = 30.0
    guests: GuestsAllow = EVERY_GUEST

    @classmethod
    def of(cls, config: XendConfig) -> ReceiveLimits:
        """Return the limits that the configuration file sets."""
        return cls(
            max_config_bytes=config.max_config_bytes,
            max_sxp_depth=config.max_sxp_depth,
            max_guest_bytes=config.max_guest_memory * MIB,
            max_device_model_bytes=config.max_device_model * MIB,
            config_timeout_s=config.control_timeout_s,
            guests=GuestsAllow.parse(config.relocation_guests_allow),
        )

    def stream(self, config: DomainConfig) -> StreamLimits:
        """Return what the stream of this guest may hold.

        Its highest frame lies above its memory: holes below 4 GiB, special pages. Whatever keeps
        something for each pfn needs as much memory as these limits allow.
        """
        pages = config.maxmem_mib * MIB // PAGE_SIZE + HOLES_PAGES
        return replace(
            DEFAULT_LIMITS,
            p2m_pages=min(pages, DEFAULT_LIMITS.p2m_pages),
            modern_pages=min(pages, DEFAULT_LIMITS.modern_pages),
            device_model_bytes=self.max_device_model_bytes,
        )


DEFAULT_RECEIVE_LIMITS = ReceiveLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """The guest is durable and paused here."""

    domain: Domain
    config: DomainConfig
    progress: MigrationProgress
    downtime: DowntimeReport | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Nothing is left here. Tell the sender and close without reading on: its guest goes on."""

    error: XendError
    progress: MigrationProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The stream was not brought to its end, and the sender's guest may be gone.

    What has come is kept: `where` says how.
    """

    error: XendError
    where: str
    progress: MigrationProgress


Outcome: TypeAlias = Received | Rejected | Kept


class Reception:
    """One guest on its way in; `run` once. The configuration is read within `hurry`."""

    def __init__(
        self,
        source: OpenSource,
        hypervisor: Hypervisor,
        *,
        limits: ReceiveLimits,
        progress: MigrationProgress,
        publish: Publish,
        hurry: AbstractContextManager[None] = NO_HURRY,
    ) -> None:
        self._recent = RecentBytes(source)
        self._hurry = hurry
        self._hypervisor = hypervisor
        self._limits = limits
        self._progress = progress
        self._publish = publish
        self._session: RestoreSession | None = None
        self._arrival: Arrival | None = None

    @property
    def ending(self) -> bool:
        """Whether the sender may have let go of its guest. Any thread."""
        arrival = self._arrival
        return arrival is not None and arrival.ending

    def cancel(self) -> None:
        """Make a call that blocks in the driver fail soon. Any thread."""
        session = self._session
        if session is not None:
            session.cancel()

    def run(self) -> Outcome:
        """Take the guest in, and say what became of it. Raises nothing."""
        try:
            config = self._read_config()
            self._progress = replace(self._progress, name=config.name, uuid=config.uuid)
            self._check(config)
            with self._hypervisor.restore(config) as session:
                self._session = session
                try:
                    return self._restore(config, session)
                finally:
                    self._session = None
        except Exception as error:
            return self.reject(error)

    def _read_config(self) -> DomainConfig:
        with self._hurry:
            envelope = drive(read_envelope(self._limits.max_config_bytes), self._recent, NoGuest())
        self._recent.settle()
        return DomainConfig.parse(envelope.config_bytes, max_depth=self._limits.max_sxp_depth)

    def _check(self, config: DomainConfig) -> None:
        """Refuse what can be known not to fit before the driver is asked."""
        self._limits.guests.require(config)
        wanted, limit = config.maxmem_mib * MIB, self._limits.max_guest_bytes
        if limit and wanted > limit:
            raise OutOfMemory(
                f"{config.name} needs {config.maxmem_mib} MiB, at most {limit // MIB} MiB are"
                " taken (xendpy-max-guest-memory)",
                wanted_bytes=wanted,
                free_bytes=limit,
            )
        if config.guest_type not in self._hypervisor.capabilities().guest_types:
            raise HypervisorError(
                f"{config.guest_type.upper()} guests are not taken by the driver"
                f" {self._hypervisor.name}"
            )
        if sxp.child_value(config.image(), "nomigrate") == "1":  # XendCheckpoint.py >= 4.0
            raise DomainError(config.name, "cannot restore non-migratable domain")

    def _restore(self, config: DomainConfig, session: RestoreSession) -> Outcome:
        log_begin(self._progress)
        arrival = Arrival(session, self._recent, config, self._progress, self._publish)
        self._arrival = arrival
        try:
            steps = decode_body(config.guest_type, self._limits.stream(config))
            drive(steps, self._recent, arrival, passed=self._recent.settle)
            arrival.check_whole()
            domain = session.complete()
        except Exception as error:
            # What is left to send may fit into the socket's buffers: then the sender takes it for
            # sent, however early it is refused, and lets go of its guest.
            if arrival.ending or arrival.worth_keeping:
                return self._keep(config, session, arrival, error)
            raise
        return Received(
            domain=domain,
            config=config,
            progress=arrival.close(MigrationState.DONE),
            downtime=arrival.downtime(),
        )

    def _keep(
        self, config: DomainConfig, session: RestoreSession, arrival: Arrival, cause: Exception
    ) -> Kept:
        """Keep what came, after reading on to the sender's end where that is possible."""
        error = explained(cause)
        if arrival.ending:
            self._read_on(session, config.maxmem_mib * MIB + REST_SLACK_BYTES)
        where = session.keep(str(error))
        log.warning("%s from %s is kept: %s (%s)", config.name, self._progress.peer, where, error)
        progress = arrival.close(_final(error), f"{error}; what came is kept: {where}")
        return Kept(error=error, where=where, progress=progress)

    def _read_on(self, session: RestoreSession, limit: int) -> None:
        try:
            with session.rest() as file:
                self._recent.read_on(file, limit)
        except (XendError, OSError) as error:
            log.warning("what followed from %s is not complete: %s", self._progress.peer, error)

    def reject(self, cause: Exception) -> Rejected:
        """Publish that nothing came of it; for whoever failed before `run` as well."""
        error = explained(cause)
        if self._arrival is not None:
            progress = self._arrival.close(_final(error), str(error))
        else:
            progress = replace(self._progress, state=_final(error), reason=str(error))
            self._publish(progress)
        return Rejected(error=error, progress=progress)


def start(migration_id: str, peer: str) -> MigrationProgress:
    """Return the first snapshot of a migration that begins at this moment."""
    return MigrationProgress(
        migration_id=migration_id,
        peer=peer,
        state=MigrationState.NEGOTIATING,
        started_s=time.time(),
    )


def _final(error: XendError) -> MigrationState:
    cut = isinstance(error, ChannelAborted | MigrationAborted)
    return MigrationState.ABORTED if cut else MigrationState.FAILED


def explained(error: Exception) -> XendError:
    """Return the error as one that can be told; a bug of ours leaves its traceback in the log."""
    if isinstance(error, XendError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("this host is short of memory", wanted_bytes=0, free_bytes=0)
    if isinstance(error, OSError):
        return HypervisorError(f"{error.strerror or error}".lower(), operation="restore")
    log.error("a guest could not be taken in", exc_info=error)
    return HypervisorError("internal error while restoring, see the log of the receiving host")
