"""Guests on their way out: who is dialled, what is asked for, and who runs the worker.

The protocol is the peer's own: another xendpy host is told by its answer to `help` and gets the
hand-over with an acknowledgement of every step; a xend gets xend's, and is believed only by its
`(ok)`.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

from xendpy.config import XendConfig
from xendpy.control.watch import OutgoingWatch, total_pages
from xendpy.errors import (
    ChannelError,
    ConfigError,
    HandshakeError,
    JournalError,
    MigrationAborted,
    MigrationError,
    UnannouncedState,
    XendError,
)
from xendpy.guest.domain import Domain, DomainConfig, GuestType
from xendpy.hypervisor.base import Hypervisor, PageSource, RecordSource
from xendpy.hypervisor.testguest import is_test_guest
from xendpy.migration.handover import Direction, Entry, Journal, Step
from xendpy.migration.native import LegacySource, NativeEncoder
from xendpy.migration.preflight import Check, Status, gather_facts
from xendpy.migration.progress import MigrationProgress, MigrationState
from xendpy.migration.send import CancelToken, Encoder, MigrationPlan, has_pages
from xendpy.paths import Paths
from xendpy.relocation import frames, incoming, packing, resolve, stripes
from xendpy.relocation.channel import Channel
from xendpy.relocation.client import Peer, ask, connect, operations
from xendpy.relocation.frames import FrameType
from xendpy.relocation.handshake import Ready
from xendpy.relocation.outgoing import (
    Outcome,
    Transfer,
    parse_checks,
    send_to_xend,
    send_to_xendpy,
)
from xendpy.relocation.tls import client_context
from xendpy.stream.legacy_dialect import DIALECTS, Dialect
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.xend import encode_envelope

log = logging.getLogger(__name__)

NEWEST_RELEASE = "4.2+"
Source: TypeAlias = PageSource | RecordSource


@dataclass(frozen=True, slots=True)
class Order:
    """One migration as somebody asked for it; `config` is the guest's, as it leaves."""

    domain: Domain
    config: DomainConfig
    peer: Peer
    plan: MigrationPlan


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


def choose_peer(
    config: XendConfig, name: str, *, port: int = 0, release: str = "", tls: bool | None = None
) -> Peer:
    """Return where `name` is: a row of the configuration, else whatever the resolver says.

    `tls` None = as the configuration says. A row's port is that of the plain protocol.
    """
    row = config.peer(name)
    secure = tls if tls is not None else config.relocation_ssl or config.relocation_require_tls
    usual = config.relocation_ssl_port if secure else (row and row.port) or config.relocation_port
    return Peer(
        name=name,
        address=row.address if row else name,
        port=port or usual,
        tls=secure,
        release=release or (row.release if row else NEWEST_RELEASE),
    )


class Dialler:
    """Dials peers, in worker threads, as the configuration of this moment says."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        journal: Journal,
        host_id: str,
        config: Callable[[], XendConfig],
        paths: Paths,
    ) -> None:
        self._hypervisor = hypervisor
        self._journal = journal
        self._host_id = host_id
        self._config = config
        self._paths = paths

    @property
    def host_name(self) -> str:
        """This host's name for guests and peers."""
        return self._config().host_name or os.uname().nodename

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
            raise MigrationError(_told(error), migration_id=outgoing.entry.id) from error

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
            self._connect(order.peer) as channel,
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
        if self._config().on_no_logdirty == "pause":
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
            raise MigrationError(_no_verdict(order.peer))
        if is_test_guest(order.config):
            raise MigrationError(
                f"{order.peer.name} is no xendpy host: a test guest can run nowhere else"
            )
        spoken = dialect(order.peer.release)
        source, encoder = _spoken(source, spoken, xsave_bytes)
        return send_to_xend(self._transfer(outgoing, channel, source, encoder))

    def _send_to_xendpy(self, outgoing: Outgoing, channel: Channel, source: Source) -> Outcome:
        answer = self._open(channel, outgoing.entry.id, outgoing.order.plan)
        host_id = resolve.field(answer, "host-id")
        entry = self._journal.learn_peer(
            outgoing.entry.id, Direction.OUT, host_id, local=host_id == self._host_id
        )
        outgoing.entry = entry
        spoken = None if _takes_libxl(answer) else dialect(NEWEST_RELEASE)
        source, encoder = _spoken(source, spoken)
        transfer = self._transfer(outgoing, channel, source, encoder)
        return send_to_xendpy(transfer, self._plan(outgoing.order, dry_run=False))

    def _open(self, channel: Channel, entry_id: str, plan: MigrationPlan) -> str:
        """Open xendpy's own protocol and return the peer's answer."""
        wanted = ((packing.ZSTD, plan.compress), (stripes.FEATURE, plan.streams > 1))
        asked = [name for name, is_wanted in wanted if is_wanted]
        opening = incoming.opening(entry_id, self._host_id, asked)
        answer = ask(channel, opening)
        if not isinstance(answer, Ready) or answer.op != incoming.OPERATION:
            raise HandshakeError(f"the peer answered {answer}", peer=channel.peer)
        incoming.agree(channel, opening, f"{answer.text}\n".encode("latin-1"))
        return answer.text

    def _plan(self, order: Order, *, dry_run: bool) -> dict[str, Any]:
        facts = gather_facts(order.config, self.host_name)
        return {
            "live": order.plan.live,
            "dry_run": dry_run,
            "host": self.host_name,
            "facts": facts.to_json(),
        }

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
            dial=lambda: self._connect(outgoing.order.peer),
        )

    def _connect(self, peer: Peer) -> Channel:
        config = self._config()
        address = config.relocation_address
        bind = address if address and address[0].isdigit() else ""
        tls = client_context(config, self._paths) if peer.tls else None
        return connect(peer, bind_address=bind, stall_timeout_s=config.stall_timeout_s, tls=tls)

    def look(self, order: Order, entry_id: str) -> list[Check]:
        """Return what preflight finds, on both sides, without sending anything."""
        checks = [Check("guest", Status.OK, f"{order.config.name} is here", "source")]
        try:
            with self._connect(order.peer) as channel:
                where = f"{order.peer.address}:{order.peer.port}"
                checks.append(Check("port", Status.OK, f"{where} answers", "source"))
                offered = operations(channel)
                checks.append(Check("hosts-allow", Status.OK, "the peer lets this host in"))
                if order.peer.tls:
                    checks.append(Check("tls", Status.OK, "encrypted; the peer is who it says"))
                if incoming.OPERATION not in offered:
                    return [*checks, *_about_xend(order, offered)]
                self._open(channel, entry_id, order.plan)
                checks.append(Check("protocol", Status.OK, "the peer is a xendpy host"))
                return [*checks, *self._ask_checks(channel, order)]
        except ConfigError as error:
            return [*checks, Check("tls", Status.FAILED, str(error), "source")]
        except ChannelError as error:
            return [*checks, Check("port", Status.FAILED, _told(error), "source")]
        except HandshakeError as error:
            return [*checks, Check("hosts-allow", Status.FAILED, error.reason)]

    def _ask_checks(self, channel: Channel, order: Order) -> list[Check]:
        plan = self._plan(order, dry_run=True)
        frames.send_json(channel, FrameType.PLAN, plan)
        frames.send_frame(channel, FrameType.CONFIG, order.config.encode())
        _, body = frames.recv_frame(channel, FrameType.CHECKS)
        return parse_checks(body)

    def ask_peer(self, entry: Entry) -> resolve.Answer:
        """Redial the target of `entry` and ask what became of its guest.

        Raises:
            XendError: it cannot be reached, or answers something else.
        """
        config = self._config()
        peer = choose_peer(config, entry.peer, port=entry.port, tls=entry.tls)
        peer = replace(peer, address=entry.address or peer.address)
        with self._connect(peer) as channel:
            return resolve.ask_target(channel, entry, self._host_id)


def _about_xend(order: Order, offered: frozenset[str]) -> list[Check]:
    release = order.peer.release
    checks = [Check("protocol", Status.WARNING, f"the peer is a xend, spoken to as {release}")]
    if "receive" not in offered:
        checks.append(Check("protocol", Status.FAILED, "the peer receives no guests"))
    if order.peer.tls:
        checks.append(Check("protocol", Status.FAILED, _no_verdict(order.peer)))
    if is_test_guest(order.config):
        text = "a test guest can run on xendpy hosts only"
        checks.append(Check("guest", Status.FAILED, text, "source"))
    return checks


def _no_verdict(peer: Peer) -> str:
    return (
        f"{peer.name} is no xendpy host: a xend that receives over TLS (sslreceive) cannot say"
        " whether the guest arrived, so nothing is sent; migrate without --ssl, through a tunnel"
        " if the network is not trusted"
    )


def _takes_libxl(answer: str) -> bool:
    features = re.search(r"\(features \(([^()]*)\)\)", answer)
    return features is not None and incoming.LIBXL in features[1].split()


def _spoken(
    source: Source, spoken: Dialect | None, xsave_bytes: int | None = None
) -> tuple[Source, Encoder]:
    """Return the source as its peer understands it, and what writes its records.

    `spoken` None = the peer takes a toolstack's own records.
    """
    guest_type = source.config.guest_type
    if has_pages(source):
        return source, LegacyEncoder(spoken or dialect(NEWEST_RELEASE), guest_type)
    records = cast(RecordSource, source)
    if spoken is None:
        return records, NativeEncoder(records)
    return LegacySource(records, spoken, xsave_bytes), LegacyEncoder(spoken, guest_type)


def _wake(channel: Channel, source: Source) -> None:
    channel.abort()
    source.cancel()


def _told(error: Exception) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    return str(getattr(error, "reason", error))
