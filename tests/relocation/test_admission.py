"""Names that count, guests that may come in, and what is written down about it."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from tests.peers.relocation_host import read_all, receiving
from tests.streams import UUID, config, envelope, pv_image
from xendpy.config_values import split_patterns
from xendpy.errors import DomainError
from xendpy.guest.domain import DomainConfig
from xendpy.migration.guests_allow import GuestsAllow
from xendpy.migration.preflight import Status
from xendpy.migration.reception import ReceiveLimits
from xendpy.relocation.admission import confirmed, confirmed_name
from xendpy.relocation.audit import Audit, Refusal, write


@pytest.mark.parametrize(
    ("name", "leads_back", "counts"),
    [
        ("good.example", True, "good.example"),
        ("forged.example", False, "192.0.2.7"),
        ("192.0.2.7", False, "192.0.2.7"),
    ],
)
def test_a_name_counts_if_it_leads_back(name: str, leads_back: bool, counts: str) -> None:
    assert confirmed_name("192.0.2.7", lambda _: name, lambda *_: leads_back) == counts


def test_the_way_back_is_looked_up() -> None:
    assert confirmed("localhost", "127.0.0.1")
    assert not confirmed("localhost", "192.0.2.7")
    assert not confirmed("x" * 300, "192.0.2.7")
    assert not confirmed("no-such-host.invalid", "192.0.2.7")


@pytest.mark.parametrize(("confirm", "let_in"), [(True, False), (False, True)])
async def test_a_forged_name_does_not_get_in(tmp_path: Path, confirm: bool, let_in: bool) -> None:
    async with receiving(
        tmp_path,
        hosts_allow=r"^trusted\.example$",
        resolve=lambda _: "trusted.example",
        confirm=lambda *_: False,
        forward_confirm=confirm,
    ) as host:
        with await asyncio.to_thread(host.connect) as sock:
            sock.sendall(b"help\nquit\n")
            assert bool(await asyncio.to_thread(read_all, sock)) is let_in
        assert host.events.refused == ([] if let_in else ["hosts-allow"])


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        ("", True),
        ("web1", True),
        (r"db.* web\d", True),
        (UUID, True),
        ("web", False),  # whole names only
        ("eb1", False),
        ("WEB1", False),
    ],
)
def test_guests_are_told_by_whole_name_or_uuid(patterns: str, allowed: bool) -> None:
    guest = DomainConfig.parse(config("web1"))
    rules = GuestsAllow.parse(patterns)
    assert len(rules.patterns) == len(split_patterns(patterns))
    assert rules.allows(guest) is allowed
    assert rules.check(guest).status is (Status.OK if allowed else Status.FAILED)
    if not allowed:
        with pytest.raises(DomainError, match="web1 may not come in"):
            rules.require(guest)


async def test_a_guest_that_may_not_come_in_is_refused_before_its_pages(tmp_path: Path) -> None:
    def send() -> bytes:
        with host.connect() as sock:
            sock.sendall(b"receive\n" + envelope(config("web1")))
            return read_all(sock)

    limits = ReceiveLimits(guests=GuestsAllow.parse("db"))
    async with receiving(tmp_path, limits=limits) as host:
        assert b"(value 'web1 may not come in: " in await asyncio.to_thread(send)


async def test_a_configuration_that_trickles_is_given_up(tmp_path: Path) -> None:
    stop = threading.Event()

    def trickle() -> bytes:
        with host.connect() as sock:
            sock.sendall(b"receive\n")
            for byte in envelope(config("web1")) + pv_image().wire:
                if stop.wait(0.02):
                    break
                try:
                    sock.sendall(bytes([byte]))
                except OSError:
                    break
            sock.settimeout(5)
            try:
                return read_all(sock)
            except OSError:
                return b""

    async with receiving(tmp_path, limits=ReceiveLimits(config_timeout_s=0.3)) as host:
        sender = asyncio.create_task(asyncio.to_thread(trickle))
        incoming = await host.ended()  # long before its 500 bytes have come at 50 a second
        stop.set()
        assert "timed out" in incoming.progress.reason
        await sender


def test_no_peer_can_forge_an_audit_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "xendpy.audit")
    heard: list[Refusal] = []
    audit = Audit(heard.append)
    audit.refused("192.0.2.7:5", Refusal.TLS, 'bad "name"\nevent=admitted', name="x\ty")
    audit.admitted("192.0.2.7:5", rule="", tls="TLSv1.3")
    write("relocation", direction="in", reason="")
    assert [record.getMessage() for record in caplog.records] == [
        'event=refused peer=192.0.2.7:5 name="x\\ty" by=tls'
        ' reason="bad \\"name\\"\\nevent=admitted"',
        "event=admitted peer=192.0.2.7:5 tls=TLSv1.3 rule=everybody",
        "event=relocation direction=in",
    ]
    assert heard == [Refusal.TLS]


def test_a_flood_of_refusals_is_counted_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "xendpy.audit")
    heard: list[Refusal] = []
    audit = Audit(heard.append)
    told = [audit.refused(f"192.0.2.7:{port}", Refusal.CONNECTIONS, "full") for port in range(5)]
    told.append(audit.refused("192.0.2.7:5", Refusal.TIMEOUT, "slow"))
    told.append(audit.refused("192.0.2.8:1", Refusal.CONNECTIONS, "full"))
    assert [key is not None for key in told] == [True, *4 * [False], True, True]
    audit.close()
    assert [record.getMessage() for record in caplog.records] == [
        "event=refused peer=192.0.2.7:0 by=connections reason=full",
        "event=refused peer=192.0.2.7:5 by=timeout reason=slow",
        "event=refused peer=192.0.2.8:1 by=connections reason=full",
        "event=refused peer=192.0.2.7 by=connections times=4",
    ]
    assert len(heard) == len(told)
    assert audit.refused("192.0.2.7:9", Refusal.CONNECTIONS, "full")


def test_audit_lines_are_written_whatever_the_log_s_level() -> None:
    assert logging.getLogger("xendpy.audit").isEnabledFor(logging.INFO)
