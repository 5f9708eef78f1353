"""What becomes of guests that end by themselves."""

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from tests.control.fakes import FakeHypervisor
from tests.streams import config as config_sxp
from xendpy.control import lifecycle
from xendpy.control.domain_methods import DomainMethods
from xendpy.control.events import EventKind
from xendpy.control.guests import Guests
from xendpy.control.lifecycle import Lifecycle
from xendpy.control.managed import ManagedDomains
from xendpy.control.node import Host
from xendpy.errors import DomainStateError
from xendpy.guest.domain import Domain, DomainConfig, DomainState

UUID = "6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10"


class EndingHypervisor(FakeHypervisor):
    """One whose guests end when the test says so."""

    def watch_ends(self, ended):
        self.ended = ended

    def set_aside(self, domain, name, uuid):
        guest = self.guests.pop(domain.uuid)
        config = guest.config.with_values(name=name, uuid=uuid)
        self.guests[uuid] = replace(guest, name=name, uuid=uuid, config=config)


@pytest.fixture
def hypervisor():
    return EndingHypervisor()


@pytest.fixture
def guests(hypervisor, workers, tmp_path):
    return Guests(hypervisor, ManagedDomains(tmp_path / "domains"), workers, Host())


def add(hypervisor, **values) -> Domain:
    parsed = DomainConfig.parse(config_sxp(name="web01", uuid=UUID, memory=16))
    return hypervisor.add(parsed.with_values(**values), DomainState.SHUTDOWN)


@asynccontextmanager
async def watched(guests, hypervisor):
    """Run a Lifecycle; give a call that ends a guest and waits until that is dealt with."""
    life = Lifecycle(guests)
    task = asyncio.create_task(life.run_for_ever())
    while not hasattr(hypervisor, "ended"):
        await asyncio.sleep(0)
    done = asyncio.Event()
    act = life._act

    async def acted(end):
        await act(end)
        done.set()

    life._act = acted

    async def end(domain, reason):
        done.clear()
        await asyncio.to_thread(hypervisor.ended, domain, reason)
        async with asyncio.timeout(80):
            await done.wait()

    yield end
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("reason", "values", "left"),
    [
        ("poweroff", {}, []),
        ("poweroff", {"on_poweroff": "preserve"}, [("web01", 1)]),
        ("poweroff", {"on_poweroff": "restart"}, [("web01", 2)]),
        ("reboot", {}, [("web01", 2)]),
        ("reboot", {"on_reboot": "destroy"}, []),
        ("crash", {}, [("web01", 2)]),
        ("crash", {"on_crash": "rename-restart"}, [("web01-1", 1), ("web01", 2)]),
        ("crash", {"on_crash": "coredump-destroy"}, []),
        ("crash", {"on_crash": "coredump-restart"}, [("web01", 2)]),
        ("crash", {"on_crash": "preserve"}, [("web01", 1)]),
        ("crash", {"on_crash": "sing"}, []),
    ],
)
async def test_what_the_configuration_says_is_done(guests, hypervisor, reason, values, left):
    domain = add(hypervisor, **values)
    told = []
    guests.events.subscribe(told.append)
    async with watched(guests, hypervisor) as end:
        await end(domain, reason)
    assert [(found.name, found.domid) for found in hypervisor.domains()] == left
    detail = "crashed" if reason == "crash" else "shutdown"
    assert (told[0].kind, told[0].domid, told[0].detail) == (EventKind.STOPPED, 1, detail)
    restarted = ("web01", 2) in left
    assert [event.kind for event in told[1:2]] == [EventKind.STARTED] * restarted
    assert guests.restarts[UUID] == restarted
    if restarted:
        assert hypervisor.guests[UUID].state is DomainState.BLOCKED


async def test_a_guest_between_two_lives_is_still_known(guests, hypervisor):
    methods = DomainMethods(guests)
    seen = []
    create = guests.create

    async def creating(config):
        seen.append((await methods.domains(False), await methods.domains(True)))
        seen.append([await methods.getRestartCount(found) for found in ("web01", UUID)])
        return await create(config)

    guests.create = creating
    async with watched(guests, hypervisor) as end:
        await end(add(hypervisor), "reboot")
    (names, details), counts = seen
    assert names == ["Domain-0", "web01"] and len(details) == 1
    assert counts == ["0", "0"]
    assert await methods.domains(False) == ["Domain-0", "web01"]
    assert await methods.getRestartCount("web01") == "1"
    assert guests.restarting == {}


async def test_a_guest_that_ends_again_at_once_is_not_restarted(guests, hypervisor, caplog):
    async with watched(guests, hypervisor) as end:
        await end(add(hypervisor), "crash")
        await end(hypervisor.find(UUID), "crash")
        assert hypervisor.domains() == [] and "restarting too fast" in caplog.text


async def test_a_guest_may_be_restarted_again_after_a_minute(guests, hypervisor, monkeypatch):
    monkeypatch.setattr(lifecycle, "MINIMUM_RESTART_S", 0.0)
    async with watched(guests, hypervisor) as end:
        await end(add(hypervisor), "crash")
        await end(hypervisor.find(UUID), "crash")
    assert guests.restarts[UUID] == 2


async def test_a_guest_that_another_host_may_own_is_left_alone(guests, hypervisor):
    class Doubtful:
        def refuse_in_doubt(self, uuid, name, verb):
            raise DomainStateError(name, "look there first", actual="in doubt")

    guests.owner = Doubtful()
    async with watched(guests, hypervisor) as end:
        await end(add(hypervisor), "crash")
    assert [found.domid for found in hypervisor.domains()] == [1]


async def test_a_held_guest_is_left_alone(guests, hypervisor):
    domain = add(hypervisor)
    hypervisor.guests[UUID] = replace(hypervisor.guests[UUID], note="10.0.0.2 may own it")
    async with watched(guests, hypervisor) as end:
        await end(domain, "crash")
    assert [found.domid for found in hypervisor.domains()] == [1]


async def test_an_operation_under_way_comes_to_its_end_first(guests, hypervisor):
    domain = add(hypervisor)
    async with watched(guests, hypervisor) as end:
        with guests.operations.begin(UUID, "web01", "being saved"):
            ending = asyncio.create_task(end(domain, "poweroff"))
            await asyncio.wait([ending], timeout=0.05)
            assert [found.domid for found in hypervisor.domains()] == [1]
        await ending
    assert hypervisor.domains() == []


async def test_a_guest_that_is_gone_already_needs_nothing(guests, hypervisor):
    async with watched(guests, hypervisor) as end:
        await end(Domain(domid=9, uuid=UUID, name="web01"), "crash")
    assert hypervisor.calls == []
