"""Guests that start and stop with the daemon: the store's own test guests, as processes."""

from __future__ import annotations

import signal
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.control.daemons import Daemon, Start
from tests.control.fakes import FakeHypervisor, guest_config
from xendpy.control import autostart
from xendpy.control.guests import Guests
from xendpy.guest.domain import DomainState
from xendpy.hypervisor.testguest import KERNEL
from xendpy.paths import Paths

MakeClient = Callable[[Path], xmlrpc.client.ServerProxy]


async def test_managed_domains_start_as_configured(
    guests: Guests, hypervisor: FakeHypervisor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guests.managed.put(guest_config("starts", on_xend_start="start"))
    guests.managed.put(guest_config("runs", on_xend_start="start"))
    guests.managed.put(guest_config("stays"))
    guests.managed.put(guest_config("fails", on_xend_start="start"))
    hypervisor.add(guest_config("runs"), DomainState.RUNNING)
    hypervisor.add(guest_config("fails", uuid="00000000-0000-0000-0000-000000000001"))
    await autostart.start_all(guests, Paths(tmp_path), "boot 1")
    assert [call[:2] for call in hypervisor.calls] == [
        ("create", "fails"),
        ("create", "starts"),
        ("unpause", "starts"),
    ]
    assert "domain fails does not start with the daemon" in caplog.text


async def test_managed_domains_stop_as_configured(
    guests: Guests, hypervisor: FakeHypervisor, caplog: pytest.LogCaptureFixture
) -> None:
    for name, action in (("down", "shutdown"), ("sleep", "suspend"), ("stay", "ignore")):
        guests.managed.put(guest_config(name, on_xend_stop=action))
        hypervisor.add(guest_config(name), DomainState.RUNNING)
    guests.managed.put(guest_config("off", on_xend_stop="suspend"))
    hypervisor.add(guest_config("foreign", on_xend_stop="shutdown"), DomainState.RUNNING)
    await autostart.stop_all(guests)
    assert [guest.name for guest in hypervisor.domains()] == ["stay", "foreign"]
    assert hypervisor.calls == [("shutdown", "down", "poweroff")]
    assert guests.managed.checkpoint(guest_config("sleep").uuid).exists()
    assert caplog.records == []


def config(name: str, *entries: Any) -> list[Any]:
    return [
        "vm", ["name", name], ["memory", 16], *entries,
        ["image", ["linux", ["kernel", KERNEL]]],
    ]  # fmt: skip


def connect(client: MakeClient, daemon: Daemon) -> xmlrpc.client.ServerProxy:
    daemon.told()
    return client(daemon.root / "var/run/xend/xmlrpc.sock")


def stop(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.communicate(timeout=120)
    assert daemon.process.returncode == 0


def test_suspended_with_the_daemon_resumed_with_the_next(start: Start, client: MakeClient) -> None:
    first = start()
    proxy = connect(client, first)
    start_stop = (["on_xend_start", "start"], ["on_xend_stop", "suspend"])
    proxy.xend.domain.new(config("web1", *start_stop))
    proxy.xend.domain.start("web1", False)
    assert proxy.xend.domains(False) == ["Domain-0", "web1"]
    stop(first)
    assert list(first.root.glob("var/lib/xend/domains/*/checkpoint.chk"))
    second = start()
    proxy = connect(client, second)
    second.wait_for_log("domain web1 started with the daemon")
    assert proxy.xend.domains(False) == ["Domain-0", "web1"]
    assert not list(second.root.glob("var/lib/xend/domains/*/checkpoint.chk"))
    proxy.xend.domain.destroy("web1")


def test_linked_configurations_are_created_once_in_a_boot(
    start: Start, client: MakeClient, tmp_path: Path
) -> None:
    auto = tmp_path / "root/etc/xen/auto"
    auto.mkdir(parents=True)
    (auto.parent / "web1").write_text(f'name = "web1"\nkernel = "{KERNEL}"\nmemory = 16\n')
    (auto / "web1").symlink_to("../web1")
    (auto / "broken").write_text("name = \n")
    first = start()
    proxy = connect(client, first)
    first.wait_for_log("broken does not start")
    first.wait_for_log("guest created")
    assert proxy.xend.domains(False) == ["Domain-0", "web1"]
    proxy.xend.domain.destroy("web1")
    stop(first)
    (auto / "later").symlink_to("../web1")
    second = start()
    proxy = connect(client, second)
    assert proxy.xend.domains(False) == ["Domain-0"]
    stop(second)
    assert second.log().count("guest created") == 1
    state = second.root / "var/lib/xend/autostart.json"
    state.write_text(state.read_text().replace(autostart.this_boot(), "another boot"))
    third = start()
    proxy = connect(client, third)
    third.wait_for_log("guest created")
    third.wait_for_log("its guest is here already")
    assert proxy.xend.domains(False) == ["Domain-0", "web1"]
    proxy.xend.domain.destroy("web1")


def link(paths: Paths, *names: str) -> None:
    paths.auto_dir.mkdir(parents=True)
    for name in names:
        (paths.auto_dir / name).touch()


def left(paths: Paths, boot_id: str) -> list[str]:
    return [file.name for file in autostart.OncePerBoot(paths, boot_id).files]


def test_each_boot_has_all_to_start(tmp_path: Path) -> None:
    link(Paths(tmp_path), "a", "b", ".hidden")
    once = autostart.OncePerBoot(Paths(tmp_path), "boot 1")
    assert [file.name for file in once.files] == ["a", "b"]
    once.tried(once.files[0])
    assert left(Paths(tmp_path), "boot 1") == ["b"]
    assert left(Paths(tmp_path), "boot 2") == ["a", "b"]
    assert left(Paths(tmp_path), "boot 2") == ["a", "b"]  # killed before the first had started
    assert left(Paths(tmp_path), "") == ["a", "b"]
    assert left(Paths(tmp_path), "") == ["a", "b"]  # a kernel that tells no boots apart


@pytest.mark.parametrize("text", ["", "[]", '{"boot_id": "boot 1"}', "\xff"])
def test_unreadable_state_is_that_of_another_boot(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    paths = Paths(tmp_path)
    link(paths, "a")
    paths.state_dir.mkdir(parents=True)
    (paths.state_dir / "autostart.json").write_bytes(text.encode("latin-1"))
    assert left(paths, "boot 1") == ["a"]
    assert "is not understood" in caplog.text
