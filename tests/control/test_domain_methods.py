from __future__ import annotations

import xmlrpc.client
from pathlib import Path
from typing import Any

import pytest

from tests.control.fakes import FakeHypervisor, guest_config
from xendpy.control import logs
from xendpy.control.domain_methods import migrate_request
from xendpy.control.guests import Guests
from xendpy.control.migrator import MigrateRequest
from xendpy.control.xmlrpc import Dispatcher
from xendpy.errors import RpcError
from xendpy.guest.domain import DomainState


async def call(dispatcher: Dispatcher, name: str, *params: Any) -> Any:
    body = xmlrpc.client.dumps(params, name, allow_none=True).encode()
    return xmlrpc.client.loads(await dispatcher.answer(body))[0][0]


async def fault(dispatcher: Dispatcher, name: str, *params: Any) -> tuple[int, str]:
    with pytest.raises(xmlrpc.client.Fault) as caught:
        await call(dispatcher, name, *params)
    return caught.value.faultCode, caught.value.faultString


# Positional arguments behind `live`, by release.
MIGRATE = [
    ("no-more", (), {}),
    ("3.1", (100, 0), {}),
    ("3.1-port", (0, 9002), {"port": 9002}),
    ("3.3", (9002, -1, None), {"port": 9002}),
    ("3.3-node-ssl", (0, 1, True), {"node": 1, "tls": True}),
    ("4.0", (0, -1, None, 0), {}),
    ("4.0-all", (9002, 2, 1, 1), {"port": 9002, "node": 2, "tls": True}),
    ("4.0-no-ssl", (0, -1, False, 0), {"tls": False}),
    ("strings", ("9002", "-1", "0", "0"), {"port": 9002, "tls": False}),
]


@pytest.mark.parametrize(
    ("rest", "wanted"), [row[1:] for row in MIGRATE], ids=[row[0] for row in MIGRATE]
)
def test_migrate_takes_the_arguments_of_every_release(
    rest: tuple[Any, ...], wanted: dict[str, Any]
) -> None:
    home = len(rest) == 4 and rest[3] == 1
    request = MigrateRequest(destination="b", live=True, change_home_server=home, **wanted)
    assert migrate_request("b", True, rest) == request


@pytest.mark.parametrize("rest", [(1, 2, 3, 4, 5), (0, "many"), (0, "x", None, 0)])
def test_migrate_refuses_other_arguments(rest: tuple[Any, ...]) -> None:
    with pytest.raises(RpcError):
        migrate_request("b", True, rest)


async def test_domains_shows_names_or_sxps(
    dispatcher: Dispatcher, guests: Guests, hypervisor: FakeHypervisor
) -> None:
    hypervisor.add(guest_config("web1"))
    guests.managed.put(guest_config("spare"))
    assert await call(dispatcher, "xend.domains", False) == ["Domain-0", "web1"]
    assert await call(dispatcher, "xend.domains", 0, 0) == ["Domain-0", "web1"]
    short = await call(dispatcher, "xend.domains")
    assert [tree[0] for tree in short] == ["domain", "domain"]
    assert "device" not in [item[0] for item in short[1][1:]]
    full = await call(dispatcher, "xend.domains", True, True)
    assert [item[0] for item in full[1][1:]].count("device") == 2
    names = await call(dispatcher, "xend.domains_with_state", False, "all", 0)
    assert names == ["Domain-0", "web1", "spare"]
    assert await call(dispatcher, "xend.domains_with_state", False, "halted") == ["spare"]
    code, _ = await fault(dispatcher, "xend.domains_with_state", True, "odd", 0)
    assert code == 2


async def test_restored_configuration_keeps_what_the_table_does_not_name(
    dispatcher: Dispatcher, hypervisor: FakeHypervisor
) -> None:
    config = guest_config("web1", vcpu_avail="'1'", odd_key="odd", cpuid_check="x", domid="9")
    hypervisor.add(config)
    tree = await call(dispatcher, "xend.domain", "web1", 1)
    keys = [item[0] for item in tree[1:]]
    assert ["odd_key", "odd"] in tree
    assert keys[-1] == "cpuid_check"
    assert "vcpu_avail" not in keys
    assert keys.count("domid") == 1
    assert ["domid", 1] in tree


async def test_vcpus_are_shown(dispatcher: Dispatcher, hypervisor: FakeHypervisor) -> None:
    hypervisor.add(guest_config("web1", vcpus="2"), DomainState.RUNNING)
    tree = await call(dispatcher, "xend.domain.getVCPUInfo", "web1")
    assert tree[:4] == ["domain", ["domid", 1], ["name", "web1"], ["vcpu_count", 2]]
    vcpus = [dict(item[1:]) for item in tree[4:]]
    assert [vcpu["number"] for vcpu in vcpus] == [0, 1]
    assert [vcpu["online"] for vcpu in vcpus] == [1, 1]
    assert sum(vcpu["cpu_time"] for vcpu in vcpus) == pytest.approx(1.5)


async def test_pause_flag_is_remembered(
    dispatcher: Dispatcher, hypervisor: FakeHypervisor
) -> None:
    hypervisor.add(guest_config("web1"))
    assert await call(dispatcher, "xend.domain.getpauseflag", "web1") is False
    assert await call(dispatcher, "xend.domain.setpauseflag", "web1", True) is None
    assert await call(dispatcher, "xend.domain.getpauseflag", 1) is True
    await call(dispatcher, "xend.domain.setpauseflag", "web1", 0)
    assert await call(dispatcher, "xend.domain.getpauseflag", "web1") is False


async def test_managed_domain_over_the_wire(
    dispatcher: Dispatcher, hypervisor: FakeHypervisor
) -> None:
    config = ["vm", ["name", "web1"], ["memory", 64], ["image", ["linux", ["kernel", "/k"]]]]
    assert await call(dispatcher, "xend.domain.new", config) is None
    assert await call(dispatcher, "xend.domain.start", "web1", False) is None
    assert hypervisor.calls == [("create", "web1"), ("unpause", "web1", DomainState.BLOCKED)]
    assert (await fault(dispatcher, "xend.domain.start", "web1", 0))[0] == 2
    await call(dispatcher, "xend.domain.setName", "web1", "web2")
    await call(dispatcher, "xend.domain.destroy", "web2")
    await call(dispatcher, "xend.domain.delete", "web2")
    assert await fault(dispatcher, "xend.domain", "web2") == (3, "web2")


async def test_memory_is_the_drivers_business(
    dispatcher: Dispatcher, hypervisor: FakeHypervisor
) -> None:
    hypervisor.add(guest_config("web1"))
    assert await call(dispatcher, "xend.domain.setMemoryTarget", "web1", "48") is None
    assert hypervisor.calls == [("set_memory", "web1", 48)]
    code, text = await fault(dispatcher, "xend.domain.maxmem_set", "web1", 48)
    assert (code, text) == (2, "the fake driver cannot change a guest's memory limit")
    assert await fault(dispatcher, "xend.domain.maxmem_set", "web1", "lots") == (
        2,
        "not a number: 'lots'",
    )


UNSUPPORTED = {
    "dump": ("/tmp/core", 0, 0),
    "reset": (),
    "pincpu": (0, "0-1"),
    "sched_credit_set": (256, 0),
    "device_create": (["vif"],),
    "destroyDevice": ("vif", 0, False, True),
    "send_trigger": ("nmi", 0),
    "usb_add": ("1:2",),
}


@pytest.mark.parametrize(("name", "params"), UNSUPPORTED.items())
async def test_what_no_driver_can_is_said(
    name: str, params: tuple[Any, ...], dispatcher: Dispatcher, hypervisor: FakeHypervisor
) -> None:
    method = f"xend.domain.{name}"
    assert await fault(dispatcher, method, "web1", *params) == (3, "web1")
    hypervisor.add(guest_config("web1"))
    code, text = await fault(dispatcher, method, "web1", *params)
    assert code == 2
    assert text.startswith("domain 'web1': the fake driver cannot ")


async def test_struct_is_no_configuration(dispatcher: Dispatcher) -> None:
    assert (await fault(dispatcher, "xend.domain.create_from_dict", {"name": "x"}))[0] == 2
    assert (await fault(dispatcher, "xend.domain.create", {"name": "x"}))[0] == 2
    assert (await fault(dispatcher, "xend.domain.create", ["vm"])) == (2, "Missing VM Name")


async def test_log_is_shown(dispatcher: Dispatcher, tmp_path: Path) -> None:
    (tmp_path / "xend.log").write_text("one\ntwo 'x'\n")
    assert await call(dispatcher, "xend.node.log") == "one\\ntwo 'x'\\n"
    (tmp_path / "xend.log").write_bytes((b"y" * 1023 + b"\n") * 4096)
    assert len(await call(dispatcher, "xend.node.log")) <= logs.MAX_TAIL // 1024 * 1025


async def test_host_methods(dispatcher: Dispatcher) -> None:
    assert await call(dispatcher, "xend.node.dmesg.info") == "(XEN) stub console ring\\n"
    assert (await fault(dispatcher, "xend.node.dmesg.clear"))[0] == 2
    assert (await fault(dispatcher, "xend.node.send_debug_keys", "h"))[0] == 2
    assert await call(dispatcher, "xendpy.migrations") == []
    assert await call(dispatcher, "xendpy.partials") == []  # this driver keeps none
    keys = [item[0] for item in await call(dispatcher, "xend.node.info", 0)]
    assert "cpu_topology" not in keys
