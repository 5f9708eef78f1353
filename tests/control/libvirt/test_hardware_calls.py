"""A guest's memory and vcpus: those of the running one, the kept ones, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.control.fakes import FakeHypervisor, guest_config
from tests.control.libvirt.client import Client
from xendpy.control.guests import Guests
from xendpy.control.libvirt.hardware_calls import CONFIG, LIVE, MAXIMUM, bit_map
from xendpy.control.libvirt.wire import Code, Packet, Status
from xendpy.control.libvirt.xdr import Reader, Writer
from xendpy.guest.domain import DomainConfig

VCPUS, MEMORY_STATS, SET_VCPUS, COUNT_VCPUS, SET_MEMORY, PINNING = 20, 159, 199, 200, 204, 230
GUEST = guest_config("web1", vcpus="4", maxmem="256", memory="64")


@pytest.fixture
async def client(sockets: Path, hypervisor: FakeHypervisor) -> AsyncIterator[Client]:
    hypervisor.guests.clear()
    client = await (await Client.connect(sockets)).opened()
    yield client
    client.close()


def about(*values: int) -> Writer:
    return Writer().domain(GUEST.name, GUEST.uuid, 1).u32(*values)


def refused(answer: Packet, code: Code) -> str:
    reader = Reader(answer.body)
    assert answer.status == Status.ERROR
    assert reader.i32() == code
    reader.i32()
    return reader.opt_string() or ""


def kept(guests: Guests) -> DomainConfig:
    config = guests.managed.get(GUEST.uuid)
    assert config is not None
    return config


async def test_memory_goes_where_the_flags_say(
    client: Client, guests: Guests, hypervisor: FakeHypervisor
) -> None:
    guests.managed.put(GUEST)
    hypervisor.add(GUEST)

    async def give(mib: int, flags: int) -> Packet:
        body = Writer().domain(GUEST.name, GUEST.uuid, 1).u64(mib << 10).u32(flags).data()
        return await client.call(SET_MEMORY, body)

    assert (await give(96, 0)).status == Status.OK
    assert hypervisor.guests[GUEST.uuid].memory_mib == 96
    assert kept(guests).memory_mib == 64
    assert (await give(128, LIVE | CONFIG)).status == Status.OK
    assert hypervisor.guests[GUEST.uuid].memory_mib == kept(guests).memory_mib == 128
    assert "more than the 256 MiB" in refused(await give(512, CONFIG), Code.INVALID_ARG)
    assert (await give(100, CONFIG | MAXIMUM)).status == Status.OK
    assert (kept(guests).maxmem_mib, kept(guests).memory_mib) == (100, 100)


async def test_vcpus_that_are_kept_come_back_in_the_count(
    client: Client, guests: Guests, hypervisor: FakeHypervisor
) -> None:
    guests.managed.put(GUEST)
    assert (await client.call(SET_VCPUS, about(2, CONFIG).data())).status == Status.OK
    for flags, count in ((CONFIG, 2), (CONFIG | MAXIMUM, 4)):
        answer = await client.call(COUNT_VCPUS, about(flags).data())
        assert Reader(answer.body).i32() == count
    assert (await client.call(SET_VCPUS, about(8, CONFIG | MAXIMUM).data())).status == Status.OK
    assert (kept(guests).vcpus, kept(guests).online_vcpus) == (8, 2)


@pytest.mark.parametrize(
    ("flags", "runs", "text"),
    [
        (LIVE, False, "domain is not running"),
        (CONFIG, True, "transient domains do not have any persistent config"),
        (LIVE | MAXIMUM, True, "the maximum of a running guest's vcpus cannot change"),
        (LIVE, True, "the fake driver cannot change a guest's vcpus"),
    ],
)
async def test_vcpus_that_cannot_change_are_refused_in_words(
    client: Client, guests: Guests, hypervisor: FakeHypervisor, flags: int, runs: bool, text: str
) -> None:
    if runs:
        hypervisor.add(GUEST)
    else:
        guests.managed.put(GUEST)
    answer = await client.call(SET_VCPUS, about(2, flags).data())
    reader = Reader(answer.body)
    reader.i32(), reader.i32()
    assert answer.status == Status.ERROR
    assert reader.opt_string() == text


async def test_a_flag_that_nobody_looks_at_is_refused_by_its_name(
    client: Client, hypervisor: FakeHypervisor
) -> None:
    hypervisor.add(GUEST)
    answer = await client.call(COUNT_VCPUS, about(0x8).data())
    text = refused(answer, Code.ARGUMENT_UNSUPPORTED)
    assert text == "--guest is not supported by xendpy"


async def test_each_vcpu_is_told_with_its_cpus(client: Client, hypervisor: FakeHypervisor) -> None:
    bound = GUEST.with_values(vcpus=2)
    tree = [*bound.tree, ["cpus", [["1"], ["0", "9"]]]]
    hypervisor.add(DomainConfig.from_sxp(tree))
    reader = Reader((await client.call(VCPUS, about(64, 2).data())).body)
    assert reader.u32() == 2
    for number in range(2):
        assert reader.u32() == number
        assert (reader.i32(), reader.u64(), reader.i32()) == (1, 750_000_000, -1)
    assert reader.opaque() == bytes((0b10, 0, 0b1, 0b10))
    reader.end()
    answer = await client.call(PINNING, about(2, 2, LIVE).data())
    assert Reader(answer.body).opaque() == bytes((0b10, 0, 0b1, 0b10))


async def test_more_maps_than_there_is_room_for_are_refused(
    client: Client, hypervisor: FakeHypervisor
) -> None:
    hypervisor.add(GUEST)
    answer = await client.call(VCPUS, about(4, 1 << 30).data())
    assert "are not given" in refused(answer, Code.INVALID_ARG)


async def test_memory_is_told_as_it_is(client: Client, hypervisor: FakeHypervisor) -> None:
    hypervisor.add(GUEST)
    reader = Reader((await client.call(MEMORY_STATS, about(8, 0).data())).body)
    assert reader.u32() == 2
    assert (reader.i32(), reader.u64()) == (6, 64 << 10)
    assert (reader.i32(), reader.u64()) == (5, 256 << 10)


def test_cpus_are_bits_from_the_lowest() -> None:
    assert bit_map([0, 8, 9, 99], 2) == bytes((0b1, 0b11))
