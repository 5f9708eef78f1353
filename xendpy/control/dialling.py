"""Reaching peers: who is dialled, how, and what both sides know before anything is sent."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from xendpy.config import XendConfig
from xendpy.errors import ChannelError, ConfigError, HandshakeError
from xendpy.guest.domain import Domain, DomainConfig
from xendpy.hypervisor.testguest import is_test_guest
from xendpy.migration.handover import Entry
from xendpy.migration.preflight import Check, Status, gather_facts
from xendpy.migration.send import MigrationPlan
from xendpy.paths import Paths
from xendpy.relocation import frames, incoming, packing, resolve, stripes
from xendpy.relocation.channel import Channel
from xendpy.relocation.client import Peer, ask, connect, no_verdict, operations
from xendpy.relocation.frames import FrameType
from xendpy.relocation.handshake import Ready
from xendpy.relocation.tls import client_context
from xendpy.relocation.to_xendpy import parse_checks

NEWEST_RELEASE = "4.2+"


@dataclass(frozen=True, slots=True)
class Order:
    """One migration as somebody asked for it; `config` is the guest's, as it leaves."""

    domain: Domain
    config: DomainConfig
    peer: Peer
    plan: MigrationPlan


def choose_peer(
    config: XendConfig,
    name: str,
    *,
    port: int = 0,
    release: str = "",
    tool_bits: int = 0,
    tls: bool | None = None,
) -> Peer:
    """Return where `name` is: a row of the configuration, else whatever the resolver says.

    `release` empty, `tool_bits` 0, `tls` None = as the configuration says. A row's port is that
    of the plain protocol.
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
        tool_bits=tool_bits or (row.tool_bits if row else 64),
    )


class Dialler:
    """Dials peers, in worker threads, as the configuration of this moment says."""

    def __init__(self, host_id: str, config: Callable[[], XendConfig], paths: Paths) -> None:
        self._host_id = host_id
        self._config = config
        self._paths = paths

    @property
    def config(self) -> XendConfig:
        """The configuration of this moment."""
        return self._config()

    @property
    def host_id(self) -> str:
        """This host, as its peers know it."""
        return self._host_id

    @property
    def host_name(self) -> str:
        """This host's name for guests and peers."""
        return self._config().host_name or os.uname().nodename

    def open(self, channel: Channel, entry_id: str, plan: MigrationPlan) -> str:
        """Open xendpy's own protocol and return the peer's answer."""
        wanted = ((packing.ZSTD, plan.compress), (stripes.FEATURE, plan.streams > 1))
        asked = [name for name, is_wanted in wanted if is_wanted]
        opening = incoming.opening(entry_id, self._host_id, asked)
        answer = ask(channel, opening)
        if not isinstance(answer, Ready) or answer.op != incoming.OPERATION:
            raise HandshakeError(f"the peer answered {answer}", peer=channel.peer)
        incoming.agree(channel, opening, f"{answer.text}\n".encode("latin-1"))
        return answer.text

    def plan_of(self, order: Order, *, dry_run: bool) -> dict[str, Any]:
        facts = gather_facts(order.config, self.host_name)
        return {
            "live": order.plan.live,
            "dry_run": dry_run,
            "host": self.host_name,
            "facts": facts.to_json(),
        }

    def connect(self, peer: Peer) -> Channel:
        """Connect to a peer.

        Raises:
            ChannelError: it does not answer, or is not who it says.
            ConfigError: this host's own certificate or key cannot be read.
        """
        config = self._config()
        address = config.relocation_address
        bind = address if address and address[0].isdigit() else ""
        tls = client_context(config, self._paths) if peer.tls else None
        return connect(peer, bind_address=bind, stall_timeout_s=config.stall_timeout_s, tls=tls)

    def look(self, order: Order, entry_id: str) -> list[Check]:
        """Return what preflight finds, on both sides, without sending anything."""
        checks = [Check("guest", Status.OK, f"{order.config.name} is here", "source")]
        try:
            with self.connect(order.peer) as channel:
                where = f"{order.peer.address}:{order.peer.port}"
                checks.append(Check("port", Status.OK, f"{where} answers", "source"))
                offered = operations(channel)
                checks.append(Check("hosts-allow", Status.OK, "the peer lets this host in"))
                if order.peer.tls:
                    checks.append(Check("tls", Status.OK, "encrypted; the peer is who it says"))
                if incoming.OPERATION not in offered:
                    return [*checks, *_about_xend(order, offered)]
                self.open(channel, entry_id, order.plan)
                checks.append(Check("protocol", Status.OK, "the peer is a xendpy host"))
                return [*checks, *self._ask_checks(channel, order)]
        except ConfigError as error:
            return [*checks, Check("tls", Status.FAILED, str(error), "source")]
        except ChannelError as error:
            return [*checks, Check("port", Status.FAILED, told(error), "source")]
        except HandshakeError as error:
            return [*checks, Check("hosts-allow", Status.FAILED, error.reason)]

    def _ask_checks(self, channel: Channel, order: Order) -> list[Check]:
        plan = self.plan_of(order, dry_run=True)
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
        with self.connect(peer) as channel:
            return resolve.ask_target(channel, entry, self._host_id)


def _about_xend(order: Order, offered: frozenset[str]) -> list[Check]:
    spoken = f"{order.peer.release} with {order.peer.tool_bits}-bit tools"
    checks = [Check("protocol", Status.WARNING, f"the peer is a xend, spoken to as {spoken}")]
    if "receive" not in offered:
        checks.append(Check("protocol", Status.FAILED, "the peer receives no guests"))
    if order.peer.tls:
        checks.append(Check("protocol", Status.FAILED, no_verdict(order.peer)))
    if is_test_guest(order.config):
        text = "a test guest can run on xendpy hosts only"
        checks.append(Check("guest", Status.FAILED, text, "source"))
    return checks


def told(error: Exception) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    return str(getattr(error, "reason", error))
