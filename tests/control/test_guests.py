from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.control.fakes import FakeHypervisor, guest_config
from xendpy.control.events import Event
from xendpy.control.guests import Guests
from xendpy.control.migrator import MigrateRequest
from xendpy.errors import (
    DomainError,
    DomainExists,
    DomainNotFound,
    DomainStateError,
    HypervisorError,
    OutOfMemory,
    Unsupported,
    XendError,
)
from xendpy.guest.domain import Domain, DomainState, DomainSummary

Act = Callable[[Guests], Awaitable[object]]


def listen(guests: Guests) -> list[tuple[str, str, str]]:
    heard: list[tuple[str, str, str]] = []

    def hear(event: Event) -> None:
        heard.append((event.kind.value, event.name, event.detail))

    guests.events.subscribe(hear)
    return heard


async def test_list_begins_with_the_host_and_ends_with_what_does_not_run(
    guests: Guests, hypervisor: FakeHypervisor
) -> None:
    hypervisor.add(guest_config("web2"), DomainState.RUNNING)
    hypervisor.add(guest_config("web1"))
    guests.managed.put(guest_config("web1"))
    guests.managed.put(guest_config("spare"))
    shown = [(guest.name, guest.domid) for guest in await guests.guests()]
    assert shown == [("Domain-0", 0), ("web2", 1), ("web1", 2), ("spare", None)]
    assert [guest.name for guest in await guests.guests("halted")] == ["spare"]
    assert [guest.name for guest in await guests.guests("paused")] == ["web1"]
    assert [guest.name for guest in await guests.guests("running")] == ["Domain-0", "web2"]
    with pytest.raises(DomainError, match="Invalid state: odd"):
        await guests.guests("odd")


async def test_reference_means_a_guest_in_xends_order(
    guests: Guests, hypervisor: FakeHypervisor
) -> None:
    one, two = hypervisor.add(guest_config("web1")), hypervisor.add(guest_config("1"))
    spare = guest_config("spare")
    guests.managed.put(spare)
    # A guest that is named "1" hides the one with id 1.
    assert (await guests.get("1")).uuid == two.uuid
    assert (await guests.get(2)).uuid == two.uuid
    assert (await guests.get("web1")).domid == one.domid
    assert (await guests.get(one.uuid.upper())).name == "web1"
    assert (await guests.get("spare")).domid is None
    assert (await guests.get(spare.uuid)).name == "spare"
    assert (await guests.get("Domain-0")).domid == 0
    assert (await guests.get("0")).name == "Domain-0"
    for unknown in ("web", "", "-1", "3", "1.0", "x" * 99):
        with pytest.raises(DomainNotFound) as caught:
            await guests.get(unknown)
        assert caught.value.domain == unknown


PRIVILEGED: list[tuple[str, Act]] = [
    ("destroy", lambda g: g.destroy(0)),
    ("save", lambda g: g.save("Domain-0", "/tmp/x")),
    ("pause", lambda g: g.pause(0)),
    ("unpause", lambda g: g.unpause(0)),
    ("shutdown", lambda g: g.shutdown(0)),
    ("migrate", lambda g: g.migrate(0, MigrateRequest(destination="b"))),
]


@pytest.mark.parametrize(("verb", "act"), PRIVILEGED, ids=[row[0] for row in PRIVILEGED])
async def test_the_host_itself_is_left_alone(verb: str, act: Act, guests: Guests) -> None:
    with pytest.raises(DomainStateError, match=f"Cannot {verb} privileged domain 0"):
        await act(guests)


async def test_restored_guest_is_the_saved_one(
    guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    hypervisor.add(guest_config("web1"), DomainState.RUNNING)
    heard = listen(guests)
    path = tmp_path / "web1.img"
    await guests.save("web1", str(path))
    assert [guest.name for guest in await guests.guests()] == ["Domain-0"]
    assert path.read_bytes().startswith(b"LinuxGuestRecord")
    assert path.stat().st_mode & 0o777 == 0o600
    restored = await guests.restore(str(path))
    assert (restored.name, restored.state) == ("web1", DomainState.BLOCKED)
    assert heard == [("stopped", "web1", "saved"), ("started", "web1", "restored")]
    assert path.exists()


async def test_restored_guest_stays_paused_if_asked(
    guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    hypervisor.add(guest_config("web1"))
    await guests.save("web1", str(tmp_path / "a"))
    assert (await guests.restore(str(tmp_path / "a"), paused=True)).state is DomainState.PAUSED
    assert ("unpause", "web1") not in hypervisor.calls


async def test_checkpoint_leaves_the_guest(
    guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    hypervisor.add(guest_config("web1"))
    await guests.save("web1", str(tmp_path / "a"), checkpoint=True)
    assert (await guests.get("web1")).domid == 1
    assert hypervisor.sources[0].ended == ["suspend", "resume"]


async def test_failed_save_leaves_the_guest_and_no_file(
    guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    hypervisor.add(guest_config("web1"))
    hypervisor.fail_read = OutOfMemory("full", wanted_bytes=1, free_bytes=0)
    (tmp_path / "a").write_bytes(b"older")
    with pytest.raises(OutOfMemory):
        await guests.save("web1", str(tmp_path / "a"))
    assert hypervisor.sources[0].ended == ["suspend", "resume"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"older"
    assert (await guests.get("web1")).domid == 1


@pytest.mark.parametrize(
    "act",
    [
        lambda g: g.destroy("web1"),
        lambda g: g.save("web1", "/nonexistent/x"),
        lambda g: g.rename("web1", "web2"),
        lambda g: g.pause(1),
        lambda g: g.shutdown("web1"),
    ],
    ids=["destroy", "save", "rename", "pause", "shutdown"],
)
async def test_second_operation_is_told_of_the_first_and_list_answers(
    act: Act, guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    hypervisor.add(guest_config("web1"))
    hypervisor.may_read.clear()
    saving = asyncio.create_task(guests.save("web1", str(tmp_path / "a")))
    try:
        assert await asyncio.to_thread(hypervisor.reading.wait, 20)
        with pytest.raises(DomainStateError, match="Domain 'web1' is being saved"):
            await act(guests)
        assert len(await guests.guests()) == 2
    finally:
        hypervisor.may_read.set()
        await saving
    assert hypervisor.calls == []


async def test_many_saves_do_not_delay_a_list(
    guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    for number in range(20):
        hypervisor.add(guest_config(f"web{number}"))
    hypervisor.may_read.clear()
    saves = [
        asyncio.create_task(guests.save(f"web{number}", str(tmp_path / str(number))))
        for number in range(20)
    ]
    try:
        assert await asyncio.to_thread(hypervisor.reading.wait, 20)
        async with asyncio.timeout(40):
            assert len(await guests.guests()) == 21
    finally:
        hypervisor.may_read.set()
        await asyncio.gather(*saves)
    assert len(await guests.guests()) == 1


async def test_cancelled_save_waits_for_its_worker_and_keeps_the_guest(
    guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path
) -> None:
    hypervisor.add(guest_config("web1"))
    hypervisor.may_read.clear()
    saving = asyncio.create_task(guests.save("web1", str(tmp_path / "a")))
    assert await asyncio.to_thread(hypervisor.reading.wait, 20)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert hypervisor.sources[0].ended == ["suspend", "cancel", "resume"]
    assert list(tmp_path.iterdir()) == []
    assert (await guests.get("web1")).domid == 1
    await guests.destroy("web1")


async def test_life_of_a_guest_is_told(guests: Guests, hypervisor: FakeHypervisor) -> None:
    heard = listen(guests)
    await guests.create(guest_config("web1"))
    await guests.unpause("web1")
    await guests.pause("web1")
    await guests.rename("web1", "web2")
    await guests.destroy("web2")
    assert heard == [
        ("started", "web1", "booted"),
        ("unpaused", "web1", ""),
        ("paused", "web1", ""),
        ("stopped", "web2", "destroyed"),
    ]
    assert hypervisor.calls[-1] == ("destroy", "web2")


async def test_names_and_uuids_are_unique(guests: Guests, hypervisor: FakeHypervisor) -> None:
    await guests.create(guest_config("web1"))
    await guests.create(guest_config("web2"))
    same_name = guest_config("web1", uuid="00000000-0000-0000-0000-000000000001")
    with pytest.raises(DomainExists, match="VM name 'web1' already exists as domain 1"):
        await guests.create(same_name)
    same_uuid = guest_config("web3", uuid=guest_config("web1").uuid)
    with pytest.raises(DomainExists, match="Domain 'web1' already exists with ID '1'"):
        await guests.create(same_uuid)
    with pytest.raises(DomainExists, match="VM name 'web1' already exists as domain 1"):
        await guests.rename("web2", "web1")
    with pytest.raises(DomainError, match="Invalid VM Name"):
        await guests.rename("web2", "a b")
    with pytest.raises(DomainExists, match="VM name 'web1' already exists as domain 1"):
        await guests.new(same_name)


BAD: list[tuple[str, Act, type[XendError], str]] = [
    ("relative path", lambda g: g.save("web1", "a.img"), HypervisorError, "absolute"),
    ("no such file", lambda g: g.restore("/nonexistent/a"), HypervisorError, "Unable to read"),
    ("no save file", lambda g: g.restore("/proc/stat"), HypervisorError, "failed: /proc/stat: "),
    ("a directory", lambda g: g.restore("/"), HypervisorError, "Unable to read"),
    ("no such directory", lambda g: g.save("web1", "/nonexistent/a"), HypervisorError, "create"),
    ("a device", lambda g: g.save("web1", "/dev/null"), HypervisorError, "not a regular file"),
    ("bad reason", lambda g: g.shutdown("web1", "now"), DomainError, "Invalid reason: now"),
    ("cannot", lambda g: g.set_vcpus("web1", 1), Unsupported, "the fake driver cannot"),
    ("no memory", lambda g: g.set_memory("web1", 0), HypervisorError, "at least 1"),
    ("no console", lambda g: g.console("web1"), Unsupported, "cannot show a guest's console"),
    (
        "nobody to send",
        lambda g: g.migrate("web1", MigrateRequest(destination="b")),
        Unsupported,
        "cannot send",
    ),
]


@pytest.mark.parametrize(
    ("act", "error", "text"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
async def test_what_cannot_be_is_refused(
    act: Act, error: type[XendError], text: str, guests: Guests, hypervisor: FakeHypervisor
) -> None:
    hypervisor.add(guest_config("web1"), DomainState.RUNNING)
    with pytest.raises(error, match=text):
        await act(guests)
    assert (await guests.get("web1")).domid == 1


async def test_managed_domain_from_definition_to_oblivion(
    guests: Guests, hypervisor: FakeHypervisor
) -> None:
    heard = listen(guests)
    config = guest_config("web1")
    assert (await guests.new(config)).domid is None
    with pytest.raises(DomainStateError, match="is not running"):
        await guests.destroy("web1")
    await guests.start("web1")
    assert (await guests.get("web1")).state is DomainState.BLOCKED
    for act in (guests.start("web1"), guests.resume("web1")):
        with pytest.raises(DomainStateError, match="Domain is already running"):
            await act
    with pytest.raises(DomainStateError, match="Domain is still running"):
        await guests.delete("web1")
    await guests.rename("web1", "web2")
    await guests.suspend("web2")
    assert (await guests.get("web2")).domid is None
    await guests.start("web2", paused=True)
    assert (await guests.get("web2")).state is DomainState.PAUSED
    assert not guests.managed.checkpoint(config.uuid).exists()
    await guests.destroy("web2")
    with pytest.raises(DomainStateError, match="Domain is not suspended"):
        await guests.resume("web2")
    await guests.delete("web2")
    with pytest.raises(DomainNotFound):
        await guests.get("web2")
    kinds = [kind for kind, _, _ in heard]
    assert kinds == [
        "defined", "started", "stopped", "suspended", "started", "resumed", "stopped", "undefined",
    ]  # fmt: skip


async def test_only_managed_domains_are_suspended_and_deleted(
    guests: Guests, hypervisor: FakeHypervisor
) -> None:
    hypervisor.add(guest_config("web1"))
    for act in (guests.suspend("web1"), guests.delete("web1")):
        with pytest.raises(DomainStateError, match="not managed by Xend lifecycle support"):
            await act


class Sent:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.takes_from: FakeHypervisor | None = None

    async def migrate(self, guest: DomainSummary, request: MigrateRequest) -> None:
        self.names.append(guest.name)
        if self.takes_from is not None:
            assert guest.domid is not None
            self.takes_from.destroy(Domain(domid=guest.domid, uuid=guest.uuid, name=guest.name))


async def test_migration_takes_the_managed_configuration_along(
    guests: Guests, hypervisor: FakeHypervisor
) -> None:
    sent = Sent()
    guests.migrator = sent
    hypervisor.add(guest_config("web1"), DomainState.RUNNING)
    hypervisor.add(guest_config("web2"), DomainState.PAUSED)
    home = MigrateRequest(destination="b", change_home_server=True)
    with pytest.raises(DomainStateError, match="Domain is not a managed domain"):
        await guests.migrate("web1", home)
    with pytest.raises(DomainStateError, match="Domain is not running"):
        await guests.migrate("web2", MigrateRequest(destination="b"))
    guests.managed.put(guest_config("web1"))
    await guests.migrate("web1", MigrateRequest(destination="b"))
    assert guests.managed.get(guest_config("web1").uuid) is not None
    await guests.migrate("web1", home)  # to this very host: it is here afterwards as well
    assert guests.managed.get(guest_config("web1").uuid) is not None
    sent.takes_from = hypervisor
    await guests.migrate("web1", home)
    assert guests.managed.get(guest_config("web1").uuid) is None
    assert sent.names == ["web1"] * 3


async def test_node_info_is_of_this_host(guests: Guests) -> None:
    info = {item[0]: item[1] for item in await guests.node_info() if isinstance(item, list)}
    assert info["host"] == os.uname().nodename
    assert "cpu_topology" in info
    short = [item[0] for item in await guests.node_info(numa=False) if isinstance(item, list)]
    assert "cpu_topology" not in short


async def test_nobody_is_told_after_unsubscribing(guests: Guests) -> None:
    heard: list[Event] = []
    stop = guests.events.subscribe(heard.append)
    await guests.new(guest_config("web1"))
    stop()
    stop()
    await guests.delete("web1")
    assert [event.name for event in heard] == ["web1"]
