"""Guests of a Xen host on their way to another one, and to a xend; only xl is a fake."""

import asyncio
import logging
import struct
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests import modern
from tests.guests import guest
from tests.peers.proxy import CUT, DOWN, HALF_CLOSE, UP, Fault, Proxy
from tests.peers.xend_receiver import XendReceiver
from tests.peers.xl_host import GUEST, RULES, XlHost, listening
from xendpy.config import MapKind, MapRow, XendConfig
from xendpy.errors import MigrationAborted, MigrationError
from xendpy.guest.domain import DomainConfig
from xendpy.migration.handover import Step
from xendpy.migration.preflight import Status, failures
from xendpy.migration.send import Sender
from xendpy.relocation.outgoing import Outcome

RUNS = "-b----"
SUSPENDED = "---s--2"


@asynccontextmanager
async def two_hosts(tmp_path):
    here, there = XlHost(tmp_path / "a"), XlHost(tmp_path / "b")
    try:
        async with listening(there):
            yield here, there
    finally:
        here.close()
        there.close()


@pytest.fixture
def host(tmp_path):
    made = XlHost(tmp_path)
    yield made
    made.close()


def verbs(host):
    return [call[0] for call in host.tool.calls]


async def test_a_running_guest_goes_to_another_host(tmp_path):
    async with two_hosts(tmp_path) as (here, there):
        here.start()
        stream = here.only().stream
        outcome, entry = await here.send(there.port)
        assert outcome is Outcome.MOVED
        assert entry.closed
        assert here.guests == {}
        assert there.guests == {"web01": RUNS}
        assert (
            there.only().stream[16:] == stream[16:]
        )  # behind the header, which names no converter
        assert "migrate" in verbs(here)
        assert "destroy" not in verbs(here)  # xl migrate does it


async def test_while_a_guest_stands_still_xl_is_asked_little(tmp_path):
    async with two_hosts(tmp_path) as (here, there):
        here.start()
        await here.send(there.port)
        restored = verbs(there).index("restore")
        after = there.tool.calls[restored + 1 :]
        assert after[: after.index(("unpause", "1")) + 1] == [
            *[("list", "-v")] * 4,  # built; still there; not dead; not held
            ("unpause", "1"),
        ]
        sent = verbs(here).index("migrate")
        assert ("list", "-l") not in here.tool.calls[sent:]


async def test_a_disk_that_xl_attached_goes_along(tmp_path):
    async with two_hosts(tmp_path) as (here, there):
        here.start()
        disk = tmp_path / "data.img"
        disk.touch()
        here.only().config["disks"] = [{"vdev": "xvdb", "pdev_path": str(disk), "readwrite": 1}]
        with pytest.raises(MigrationError, match=f"disk {disk} is not below"):
            await here.send(there.port)
        there.rules = replace(RULES, guest_paths=("/boot", str(tmp_path)))
        there.hypervisor.close()
        there.boot()
        async with listening(there):
            await here.send(there.port)
        assert there.only().config["disks"][0]["pdev_path"] == str(disk)


async def test_a_guest_goes_to_its_own_host(tmp_path):
    host = XlHost(tmp_path)
    async with listening(host):
        host.start()
        outcome, _ = await host.send(host.port)
        assert outcome is Outcome.MOVED
        assert host.guests == {"web01": RUNS}
        assert host.only().domid == 2
    host.close()


async def test_a_paused_guest_arrives(tmp_path):
    async with two_hosts(tmp_path) as (here, there):
        here.hypervisor.pause(here.start())
        outcome, _ = await here.send(there.port)
        assert outcome is Outcome.MOVED
        assert list(there.guests) == ["web01"]


async def test_cut_anywhere_one_guest_is_left(tmp_path):
    async with two_hosts(tmp_path) as (here, there):
        proxy = Proxy(("127.0.0.1", there.port))
        proxy.arm(None)
        here.start()
        await here.send(proxy.port)
        passed = dict(proxy.units)
        left = set()
        for direction in (UP, DOWN):
            for unit in range(1, passed[direction] + 1):
                for host in (here, there):
                    for found in list(host.hypervisor.domains()):
                        host.hypervisor.destroy(host.hypervisor.find(str(found.domid)))
                here.start()
                proxy.arm(Fault(CUT, direction, unit))
                left.add(await _one_guest_is_left(here, there, proxy))
        proxy.close()
    assert left == {"here", "there"}


async def _one_guest_is_left(here, there, proxy):
    try:
        outcome, entry = await here.send(proxy.port)
    except MigrationError:
        assert here.guests == {"web01": RUNS}
    else:
        if outcome is Outcome.IN_DOUBT:
            assert here.guests == {"web01--migratedaway": SUSPENDED}
            assert entry.step is Step.RELEASED
    while here.journal.open_entries():  # what it says first, and that both know it
        await here.resolve(there.port)
    await there.ended()
    both = {**here.guests, **there.guests}
    assert both == {"web01": RUNS}, (here.guests, there.guests)
    return "here" if here.guests else "there"


async def test_what_was_released_is_suspended_until_the_target_answers(tmp_path):
    async with two_hosts(tmp_path) as (here, there):
        proxy = Proxy(("127.0.0.1", there.port))
        proxy.arm(None)
        here.start()
        await here.send(proxy.port)
        there.hypervisor.destroy(there.hypervisor.find("web01"))
        here.start()
        # Behind the image's end come released and forgotten, which the target does not hear.
        proxy.arm(Fault(HALF_CLOSE, UP, proxy.units[UP] - 2))
        outcome, entry = await here.send(proxy.port)
        assert outcome is Outcome.IN_DOUBT
        assert here.guests == {"web01--migratedaway": SUSPENDED}
        (summary,) = here.hypervisor.domains()
        assert "released to" in summary.note
        here.hypervisor.close()
        here.boot()  # another daemon
        await here.ownership.recover()
        assert here.guests == {"web01--migratedaway": SUSPENDED}
        settled = await here.ownership.settle(here.journal.find(entry.id), "keep")
        assert settled.step is Step.KEPT
        assert here.guests == {"web01": RUNS}
        proxy.close()


async def test_a_guest_in_doubt_is_dropped_where_an_operator_says_so(host):
    with XendReceiver(behaviour="close") as old:
        host.start()
        outcome, entry = await host.send(old.port, release="4.2+")
    assert outcome is Outcome.IN_DOUBT
    assert host.guests == {"web01--migratedaway": SUSPENDED}
    await host.ownership.settle(host.journal.find(entry.id), "discard")
    assert host.guests == {}


async def test_a_daemon_that_ends_before_the_release_leaves_the_guest_running(host):
    host.start()
    domain = host.hypervisor.find("web01")
    with host.hypervisor.save(domain, migration_id="e" * 32, live=True) as source:
        for _ in source.records():
            pass
        assert host.guests == {"web01": SUSPENDED}
        source._say.close()  # as the kernel does with the pipes of a process that ends
        source._pipe.close()
        source._child._thread.join()
    assert host.guests == {"web01": RUNS}


async def test_a_killed_xl_leaves_a_guest_that_goes_on(host):
    host.start()
    domain = host.hypervisor.find("web01")
    with host.hypervisor.save(domain, live=True) as source:
        for _ in source.records():
            pass
        source._child.kill()
        source._child._thread.join()
        assert host.guests == {"web01": SUSPENDED}
        source.resume()
    assert host.guests == {"web01": RUNS}
    assert "(resume)" in verbs(host)


async def test_a_guest_that_xl_cannot_log_is_refused_with_the_reason(host):
    host.start()
    host.tool.virt_caps = "pv hvm hap"
    with XendReceiver() as old:
        text = r"no log of the dirty pages of PV guests \(virt_caps of `xl info` has no shadow\)"
        with pytest.raises(MigrationError, match=text):
            await host.send(old.port)
        host.config = XendConfig(on_no_logdirty="pause")
        outcome, _ = await host.send(old.port)
    assert outcome is Outcome.MOVED
    assert "save" in verbs(host)
    assert "migrate" not in verbs(host)


async def test_what_xl_says_of_a_failure_reaches_the_user(tmp_path):
    async with two_hosts(tmp_path) as (here, there):
        here.start()
        here.tool.refuse["migrate"] = "xc: error: Failed to enable logdirty: 95,22,0\n"
        with pytest.raises(MigrationError, match="Failed to enable logdirty: 95,22,0"):
            await here.send(there.port)
        assert here.guests == {"web01": RUNS}
        assert there.guests == {}


async def test_a_cancelled_guest_goes_on(tmp_path):
    async with two_hosts(tmp_path) as (here, there):
        here.start()
        here.only().stream = here.only().stream[:-8] + bytes(8 << 20)
        outgoing = here.order(there.port)
        outgoing.watch.sent, sent = (
            lambda *news: (sent(*news), outgoing.cancel.cancel("me")),
            (outgoing.watch.sent),
        )
        with pytest.raises(MigrationAborted, match="me"):
            await asyncio.to_thread(here.sender.run, outgoing)
        assert here.guests == {"web01": RUNS}
        assert here.entry(outgoing).step is Step.KEPT  # the peer is still to be told


async def test_a_xend_gets_the_pages_while_the_guest_runs(host):
    with XendReceiver() as old:
        host.start()
        outcome, entry = await host.send(old.port, release="4.2+")
    (came,) = old.received
    assert outcome is Outcome.MOVED
    assert entry.result == Step.MOVED
    assert host.guests == {}
    assert sorted(came.pages) == list(range(40))
    kinds = [type(record).__name__ for record in came.records]
    # The guest of these tests has xsave state: it is sent twice, the second time announced.
    assert verbs(host).count("migrate") == 2
    assert kinds.count("VcpuContext") == 6


@pytest.mark.parametrize("live", [True, False])
async def test_a_xend_with_32_bit_tools_gets_numbers_of_32_bits(host, live):
    host.start()
    with XendReceiver(tools=32) as old:
        with pytest.raises(MigrationError, match="Restore failed"):
            await host.send(old.port, live=live, release="4.2+")
        outcome, _ = await host.send(old.port, live=live, release="4.2+", tool_bits=32)
    assert outcome is Outcome.MOVED
    assert sorted(old.received[0].pages) == list(range(40))


@pytest.mark.parametrize("live", [True, False])
async def test_what_a_xend_cannot_restore_is_left_out_only_if_asked(host, live, caplog):
    caplog.set_level(logging.INFO)
    host.start()
    tsc_aux = modern.vcpu(modern.MSRS, 1, struct.pack("<IIQ", 0xC0000103, 0, 1))
    ends = 16  # the image's, the stream's
    host.only().stream = host.only().stream[:-ends] + tsc_aux + host.only().stream[-ends:]
    with XendReceiver() as old:
        with pytest.raises(MigrationError, match=r"the MSRs of vcpu 1 .*--lossy"):
            await host.send(old.port, live=live, release="4.2+")
        assert host.guests == {"web01": RUNS}
    with XendReceiver() as old:
        outcome, _ = await host.send(old.port, live=live, release="4.2+", lossy=True)
    (came,) = old.received
    assert outcome is Outcome.MOVED
    assert sorted(came.pages) == list(range(40))
    assert "web01, on its way to a xend: the MSRs of vcpu 1 are left out" in caplog.text


async def test_a_xend_that_refuses_leaves_the_guest_running(host):
    for behaviour in ("refuse", "err"):
        with XendReceiver(behaviour=behaviour, text="no room") as old:
            if not host.guests:
                host.start()
            with pytest.raises(MigrationError, match="no room"):
                await host.send(old.port, release="4.2+")
        assert host.guests == {"web01": RUNS}, behaviour
    assert "(resume)" not in verbs(host)  # xl has done it


async def test_the_tail_waits_until_xl_has_given_the_guest_up(host, monkeypatch):
    """Whoever has a tail can run the guest: then this host's copy is suspended already."""
    seen = []
    send_tail = Sender.send_tail

    def tail(sender):
        (entry,) = host.journal.open_entries()
        seen.append((host.guests, entry.step))
        send_tail(sender)

    monkeypatch.setattr(Sender, "send_tail", tail)
    with XendReceiver() as old:
        host.start()
        await host.send(old.port, release="4.2+")
    assert seen == [({"web01--migratedaway": SUSPENDED}, Step.SENT)]


async def test_a_hvm_guest_that_runs_is_not_for_a_xend(host):
    host.start()
    note = host.hypervisor._notes.get(1, GUEST.uuid)
    raw = note.raw.replace("(image (linux", "(image (hvm")
    host.hypervisor._notes.put(replace(note, raw=raw))
    with XendReceiver() as old, pytest.raises(MigrationError, match="HVM guest to a xend while"):
        await host.send(old.port, release="4.2+")
    assert host.guests == {"web01": RUNS}
    (entry,) = host.journal.entries()
    assert entry.step is Step.KEPT


async def test_a_dry_run_shows_what_the_target_maps_and_refuses(tmp_path):
    maps = (MapRow(MapKind.BRIDGE, "xenbr0", "br-none"), MapRow(MapKind.DISK, "/boot", "/srv"))
    here = XlHost(tmp_path / "a")
    there = XlHost(tmp_path / "b", rules=replace(RULES, maps=maps))
    async with listening(there):
        disk = b"(device (vbd (dev xvda:disk) (mode w) (uname file:/boot/none.img)))"
        raw = guest().encode().replace(b"(status 2)", b"(status 2)" + disk)
        here.start()
        outgoing = here.order(there.port, config=DomainConfig.parse(raw))
        checks = await asyncio.to_thread(here.dialler.look, outgoing.order, "f" * 32)
    said = {check.name: check.detail for check in checks if check.status is Status.FAILED}
    assert said == {
        "bridge": "bridge br-none (for xenbr0) does not exist",
        "disk": "/srv/none.img (for /boot/none.img) is none that a guest may have: see"
        " xendpy-guest-paths",
        "configuration": "disk /srv/none.img is not below /boot: see xendpy-guest-paths and"
        " xendpy-map-disk",
    }
    assert there.guests == {}
    here.close()
    there.close()


async def test_nothing_is_told_of_a_guest_that_may_not_come_in(tmp_path):
    here = XlHost(tmp_path / "a")
    there = XlHost(tmp_path / "b", config=XendConfig(relocation_guests_allow="db1"))
    async with listening(there):
        here.start()
        order = here.order(there.port).order
        checks = await asyncio.to_thread(here.dialler.look, order, "f" * 32)
    names = [check.name for check in checks if check.side == "target"]
    assert names == ["hosts-allow", "protocol", "guests-allow"]  # two of them by its answering
    assert [check.name for check in failures(checks)] == ["guests-allow"]
    here.close()
    there.close()
