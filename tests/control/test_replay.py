"""What a real xm asked of a real xend 4.4, asked of us: the answers have the same shape."""

from __future__ import annotations

import asyncio
import re
import xmlrpc.client
from pathlib import Path
from typing import Any

import pytest

from tests.control.fakes import FakeHypervisor
from xendpy.control.guests import Guests
from xendpy.control.migrator import MigrateRequest
from xendpy.control.xmlrpc import Dispatcher
from xendpy.guest.domain import DomainSummary

RECORDED = Path(__file__).parent.parent / "data" / "xmlrpc"
NUMBERS = sorted(path.stem for path in RECORDED.glob("*.c2s"))
# What a booted kernel's ELF notes say, and the parts of an answer that are lists of any length.
NOT_COMPARED = ("notes",)
ANY_LENGTH = ("cpus",)
# `create` answered while the guest was being made: times and a device are missing at random.
CREATED = ("001", "023", "030")


class FakeMigrator:
    def __init__(self, hypervisor: FakeHypervisor) -> None:
        self.requests: list[MigrateRequest] = []
        self._hypervisor = hypervisor

    async def migrate(self, guest: DomainSummary, request: MigrateRequest) -> None:
        self.requests.append(request)
        del self._hypervisor.guests[guest.uuid]


def body(name: str) -> bytes:
    return (RECORDED / name).read_bytes().partition(b"\r\n\r\n")[2]


def result(xml: bytes) -> Any:
    try:
        return xmlrpc.client.loads(xml)[0][0]
    except xmlrpc.client.Fault as fault:
        return fault


def shape(value: Any) -> Any:
    """Return keys, nesting and types; sxp children without their order, which was a dict's."""
    if isinstance(value, xmlrpc.client.Fault):
        return ("fault", value.faultCode, value.faultString)
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if not isinstance(value, list):
        return type(value).__name__
    if value and isinstance(value[0], str):
        if value[0] in NOT_COMPARED:
            return value[0]
        if value[0] in ANY_LENGTH:
            return (value[0], "rows")
        children = [item for item in value[1:] if shape(item) not in NOT_COMPARED]
        return (value[0], sorted(map(str, map(shape, children))))
    return [shape(item) for item in value]


async def replay(
    dispatcher: Dispatcher, saved: Path, upto: str = NUMBERS[-1]
) -> dict[str, tuple[Any, Any]]:
    """Return (recorded, ours) by number; the recorded save file's path becomes `saved`."""
    answers = {}
    for number in NUMBERS:
        request = body(f"{number}.c2s").replace(b"/var/tmp/saved00.img", str(saved).encode())
        ours = await dispatcher.answer(request)
        answers[number] = (result(body(f"{number}.s2c")), result(ours))
        if number == upto:
            break
    return answers


async def test_every_recorded_request_gets_an_answer_of_the_same_shape(
    dispatcher: Dispatcher, guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    guests.migrator = FakeMigrator(hypervisor)
    answers = await replay(dispatcher, tmp_path / "saved.img")
    assert len(answers) == 38
    for number, (recorded, ours) in answers.items():
        if number in CREATED:
            assert set(map(str, shape(recorded)[1])) <= set(map(str, shape(ours)[1])), number
        else:
            assert shape(ours) == shape(recorded), number


async def test_keys_that_do_not_come_from_a_dict_come_in_the_recorded_order(
    dispatcher: Dispatcher, guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    guests.migrator = FakeMigrator(hypervisor)
    answers = await replay(dispatcher, tmp_path / "saved.img")
    for number in ("005", "020", "030"):
        recorded, ours = answers[number]
        keys = [item[0] for item in recorded[1:] if item[0] != "device"]
        assert [item[0] for item in ours[1:] if item[0] != "device"] == keys
    recorded, ours = answers["014"]
    assert [item[0] for item in ours] == [item[0] for item in recorded]


async def test_migrate_carries_what_xm_asked_for(
    dispatcher: Dispatcher, guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    migrator = FakeMigrator(hypervisor)
    guests.migrator = migrator
    await replay(dispatcher, tmp_path / "saved.img", upto="021")
    assert migrator.requests == [
        MigrateRequest(destination="127.0.0.1", live=True, port=18099, node=-1, tls=None)
    ]


async def test_created_guest_has_what_the_client_asked_for(
    dispatcher: Dispatcher, guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    answers = await replay(dispatcher, tmp_path / "saved.img", upto="001")
    recorded, ours = answers["001"]
    values = dict(item[:2] for item in ours[1:] if len(item) == 2)
    wanted = dict(item[:2] for item in recorded[1:] if len(item) == 2)
    for key in ("name", "memory", "maxmem", "vcpus", "on_poweroff", "on_crash", "domid"):
        assert values[key] == wanted[key]
    image = dict(item[:2] for item in values["image"][1:])
    assert image["args"] == "root=/dev/xvda1 ro console=hvc0 note=held-out"
    vbd = next(item[1] for item in ours if item[0] == "device" and item[1][0] == "vbd")
    assert ["dev", "xvda:disk"] in vbd
    assert ["bootable", 1] in vbd


@pytest.mark.parametrize("number", ["004", "014", "036", "038"])
async def test_recorded_bytes_are_answered_over_the_socket(server: Path, number: str) -> None:
    reader, writer = await asyncio.open_unix_connection(str(server))
    writer.write((RECORDED / f"{number}.c2s").read_bytes())
    async with asyncio.timeout(80):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nContent-Type: text/xml\r\n" in head
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length
        answer = result(await reader.readexactly(int(length[1])))
    writer.close()
    recorded = result(body(f"{number}.s2c"))
    assert type(answer) is type(recorded)
