"""Guests on their way out: how each is sent, and where it is then.

The protocol is the peer's own: another xendpy host is told by its answer to `help` and gets the
hand-over with an acknowledgement of every step; a xend gets xend's, and is believed only by its
`(ok)`.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from xendpy.control.dialling import NEWEST_RELEASE, Dialler, Order, told
from xendpy.control.watch import OutgoingWatch, total_pages
from xendpy.errors import (
    JournalError,
    MigrationAborted,
    MigrationError,
    UnannouncedState,
    XendError,
)
from xendpy.guest.domain import GuestType
from xendpy.hypervisor.base import Hypervisor, PageSource, RecordSource
from xendpy.hypervisor.testguest import is_test_guest
from xendpy.migration.handover import Direction, Entry, Step
from xendpy.migration.journal import Journal
from xendpy.migration.native import LegacySource, NativeEncoder
from xendpy.migration.progress import MigrationProgress, MigrationState
from xendpy.migration.send import CancelToken, Encoder, has_pages
from xendpy.relocation import incoming, resolve
from xendpy.relocation.channel import Channel
from xendpy.relocation.client import no_verdict, operations
from xendpy.relocation.outgoing import Outcome, Transfer
from xendpy.relocation.to_xend import send_to_xend
from xendpy.relocation.to_xendpy import send_to_xendpy
from xendpy.stream.legacy_dialect import DIALECTS, Dialect
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.xend import encode_envelope

log = logging.getLogger(__name__)

Source: TypeAlias = PageSource | RecordSource


@dataclass(slots=True)
class Outgoing:
    """One migration under way; `watch` and `cancel` are for any thread."""

    order: Order
    entry: Entry
    watch: OutgoingWatch
    cancel: CancelToken = field(default_factory=CancelToken)


def dialect(release: str) -> Dialect:
    """Return how a xend of that release wants its stream."""
    return DIALECTS["4.4" if release == NEWEST_RELEASE else release]


class Sender:
    """Sends guests, in worker threads, to the peers that it has dialled."""

    def __init__(self, hypervisor: Hypervisor, journal: Journal, dialler: Dialler) -> None:
        self._hypervisor = hypervisor
        self._journal = journal
        self._dialler = dialler

    def begin(self, entry_id: str, order: Order) -> Outgoing:
        """Journal a migration that is about to begin: the guest is here."""
        entry = self._journal.begin(
            Entry(
                id=entry_id,
                direction=Direction.OUT,
                step=Step.SENDING,
                name=order.domain.name,
                uuid=order.config.uuid,
                peer=order.peer.name,
                address=order.peer.address,
                port=order.peer.port,
                tls=order.peer.tls,
                live=order.plan.live,
            )
        )
        progress = MigrationProgress(
            migration_id=entry_id,
            peer=order.peer.name,
            name=order.domain.name,
            uuid=order.config.uuid,
            total_pages=total_pages(order.config.memory_mib),
            started_s=time.time(),
        )
        return Outgoing(order, entry, OutgoingWatch(progress))

    def run(self, outgoing: Outgoing) -> Outcome:
        """Send the guest, and say where it is then. Blocking.

        Raises:
            MigrationAborted: somebody cancelled; the guest goes on here.
            MigrationError: it failed; the guest goes on here.
        """
        try:
            outcome = self._run(outgoing)
        except MigrationAborted as error:
            outgoing.watch.ended(MigrationState.ABORTED, str(error))
            raise
        except XendError as error:
            outgoing.watch.ended(MigrationState.FAILED, str(error))
            raise
        except Exception:
            outgoing.watch.ended(MigrationState.FAILED, "internal error")
            if self._kept(outgoing, "internal error"):
                self._hypervisor.release_hold(outgoing.order.domain)
            raise
        doubt = outcome is Outcome.IN_DOUBT
        entry = self._journal.get(outgoing.entry.id, Direction.OUT)
        reason = f"in doubt: {entry.reason}" if doubt and entry is not None else ""
        outgoing.watch.ended(MigrationState.FAILED if doubt else MigrationState.DONE, reason)
        return outcome

    def _run(self, outgoing: Outgoing) -> Outcome:
        try:
            return self._dial_and_send(outgoing)
        except (XendError, OSError) as error:
            self._kept(outgoing, str(error))
            if outgoing.cancel.cancelled and not isinstance(error, MigrationAborted):
                raise MigrationAborted(outgoing.cancel.by) from error
            if isinstance(error, MigrationError):
                raise
            raise MigrationError(told(error), migration_id=outgoing.entry.id) from error

    def _kept(self, outgoing: Outgoing, reason: str) -> bool:
        """Journal that the guest goes on here, if it was not let go; say whether it does."""
        entry = self._journal.get(outgoing.entry.id, Direction.OUT)
        if entry is None or entry.step is not Step.SENDING:
            return False
        with suppress(JournalError):  # the guest is here on disk as well; see Transfers
            self._journal.advance(entry.id, Direction.OUT, Step.KEPT, reason=reason)
            if not entry.peer_host_id:  # nobody has heard of it
                self._journal.advance(entry.id, Direction.OUT, Step.CLOSED)
        return True

    def _dial_and_send(self, outgoing: Outgoing) -> Outcome:
        try:
            return self._attempt(outgoing, None)
        except UnannouncedState as error:
            log.info("migration %s: sent once more: %s", outgoing.entry.id[:8], error)
            return self._attempt(outgoing, error.xsave_bytes)

    def _attempt(self, outgoing: Outgoing, xsave_bytes: int | None) -> Outcome:
        """Send the guest; `xsave_bytes` is what a xend is told of a running guest's vcpus."""
        order = outgoing.order
        with (
            self._dialler.connect(order.peer) as channel,
            self._hypervisor.save(
                order.domain, migration_id=outgoing.entry.id, live=self._live(order)
            ) as opened,
        ):
            source = opened
            outgoing.cancel.on_cancel(lambda: _wake(channel, source))
            outgoing.cancel.check()
            if incoming.OPERATION in operations(channel):
                return self._send_to_xendpy(outgoing, channel, source)
            return self._send_to_xend(outgoing, channel, source, xsave_bytes)

    def _live(self, order: Order) -> bool:
        """Say whether the guest can go on running while it is sent, if that was asked for.

        Raises:
            MigrationError: it cannot, and is not to stand still for as long as its memory takes.
        """
        can = self._hypervisor.capabilities()
        if not order.plan.live or not can.runs_guests:
            return False
        kind = order.config.guest_type
        if kind in can.live_save:
            return True
        if self._dialler.config.on_no_logdirty == "pause":
            return False
        needs = "shadow" if kind is GuestType.PV else "hap or shadow"
        raise MigrationError(
            f"{order.config.name} cannot be sent while it runs: this hypervisor keeps no log of"
            f" the dirty pages of {kind.upper()} guests (virt_caps of `xl info` has no {needs});"
            " without --live, or with (xendpy-on-no-logdirty pause), it stands still while it is"
            " sent"
        )

    def _send_to_xend(
        self, outgoing: Outgoing, channel: Channel, source: Source, xsave_bytes: int | None
    ) -> Outcome:
        order = outgoing.order
        if order.peer.tls:
            raise MigrationError(no_verdict(order.peer))
        if is_test_guest(order.config):
            raise MigrationError(
                f"{order.peer.name} is no xendpy host: a test guest can run nowhere else"
            )
        spoken = dialect(order.peer.release)
        source, encoder = _spoken(
            source,
            spoken,
            xsave_bytes,
            tool_width=order.peer.tool_bits // 8,
            lossy=order.plan.lossy,
        )
        return send_to_xend(self._transfer(outgoing, channel, source, encoder))

    def _send_to_xendpy(self, outgoing: Outgoing, channel: Channel, source: Source) -> Outcome:
        answer = self._dialler.open(channel, outgoing.entry.id, outgoing.order.plan)
        host_id = resolve.field(answer, "host-id")
        entry = self._journal.learn_peer(
            outgoing.entry.id, Direction.OUT, host_id, local=host_id == self._dialler.host_id
        )
        outgoing.entry = entry
        spoken = None if _takes_libxl(answer) else dialect(NEWEST_RELEASE)
        source, encoder = _spoken(source, spoken, lossy=outgoing.order.plan.lossy)
        transfer = self._transfer(outgoing, channel, source, encoder)
        return send_to_xendpy(transfer, self._dialler.plan_of(outgoing.order, dry_run=False))

    def _transfer(
        self, outgoing: Outgoing, channel: Channel, source: Source, encoder: Encoder
    ) -> Transfer:
        config = outgoing.order.config
        xendpy = outgoing.entry.peer_host_id != ""
        return Transfer(
            channel=channel,
            source=source,
            encoder=encoder,
            envelope=config.encode() if xendpy else encode_envelope(config),
            journal=self._journal,
            entry=outgoing.entry,
            plan=outgoing.order.plan,
            watcher=outgoing.watch,
            cancel=outgoing.cancel,
            dial=lambda: self._dialler.connect(outgoing.order.peer),
        )


def _takes_libxl(answer: str) -> bool:
    features = re.search(r"\(features \(([^()]*)\)\)", answer)
    return features is not None and incoming.LIBXL in features[1].split()


def _spoken(
    source: Source,
    spoken: Dialect | None,
    xsave_bytes: int | None = None,
    *,
    tool_width: int = 8,
    lossy: bool,
) -> tuple[Source, Encoder]:
    """Return the source as its peer understands it, and what writes its records.

    `spoken` None = the peer takes a toolstack's own records. Xendpy hosts take either width.
    """
    guest_type = source.config.guest_type
    if has_pages(source):
        return source, LegacyEncoder(spoken or dialect(NEWEST_RELEASE), guest_type, tool_width)
    records = cast(RecordSource, source)
    if spoken is None:
        return records, NativeEncoder(records)
    legacy = LegacySource(records, spoken, xsave_bytes, lossy=lossy)
    return legacy, LegacyEncoder(spoken, guest_type, tool_width)


def _wake(channel: Channel, source: Source) -> None:
    channel.abort()
    source.cancel()
