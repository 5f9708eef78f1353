"""The daemon as a process, seen through its signals, its sockets and its service manager."""

from __future__ import annotations

import asyncio
import signal
import socket
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path

from tests.control.daemons import DEADLINE_S, Start
from tests.control.libvirt.client import OPEN, Client
from xendpy.control.libvirt.xdr import Writer


def test_daemon_is_ready_serves_and_stops(
    start: Start, client: Callable[[Path], xmlrpc.client.ServerProxy]
) -> None:
    daemon = start()
    assert daemon.told()["READY"] == "1"
    path = daemon.root / "var/run/xend/xmlrpc.sock"
    proxy = client(path)
    assert proxy.xend.domains(False) == ["Domain-0"]
    assert proxy.xend.node.log().startswith("[20")
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.told()["STOPPING"] == "1"
    _, said = daemon.process.communicate(timeout=DEADLINE_S)
    assert daemon.process.returncode == 0, said
    assert not path.exists()
    assert "Xend Daemon started" in daemon.log()
    assert "Xend Daemon stopped" in daemon.log()
    assert said and all(line.startswith("<") for line in said.splitlines()), said


def test_reload_takes_all_or_nothing(start: Start) -> None:
    daemon = start("(xend-relocation-hosts-allow '^a$')")
    daemon.told()
    file = daemon.root / "etc/xen/xend-config.sxp"
    file.write_text("(loglevel DEBUG) (xend-relocation-hosts-allow '[')")
    daemon.process.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC" in daemon.told()
    told = daemon.told()
    assert told["READY"] == "1"
    assert "not reloaded" in told["STATUS"]
    file.write_text("(loglevel DEBUG) (xend-relocation-hosts-allow '^b$')")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.told()
    assert "not reloaded" not in daemon.told()["STATUS"]
    daemon.process.send_signal(signal.SIGUSR1)
    daemon.process.send_signal(signal.SIGINT)
    daemon.process.communicate(timeout=DEADLINE_S)
    assert daemon.process.returncode == 0
    log = daemon.log()
    assert log.index("the configuration is not reloaded") < log.index("configuration reloaded")


def test_unusable_configuration_is_no_start(start: Start) -> None:
    daemon = start("(xend-relocation-server perhaps)")
    _, said = daemon.process.communicate(timeout=DEADLINE_S)
    assert daemon.process.returncode == 78
    assert "xend-config.sxp:2" in said
    assert "Traceback" not in said


def test_busy_port_is_no_start(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = start(
            "(xend-relocation-server yes) (xend-relocation-address 127.0.0.1)"
            f" (xend-relocation-port {port}) (xend-relocation-hosts-allow '^a$')"
        )
        _, said = daemon.process.communicate(timeout=DEADLINE_S)
    assert daemon.process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "Traceback" not in said


def test_two_daemons_never_own_one_store(start: Start) -> None:
    first = start()
    first.told()
    (first.root / "var/run/xend.pid").unlink()  # so that only the lock is in the way
    second = start()
    _, said = second.process.communicate(timeout=DEADLINE_S)
    assert second.process.returncode == 1
    assert "Traceback" not in said
    assert first.process.poll() is None


def test_hidden_socket_is_not_opened(start: Start) -> None:
    daemon = start("(xend-unix-xmlrpc-server no)")
    daemon.told()
    assert not (daemon.root / "var/run/xend/xmlrpc.sock").exists()


def test_tcp_is_served_to_whom_hosts_allow_admits(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    daemon = start(
        "(xend-tcp-xmlrpc-server yes) (xend-tcp-xmlrpc-server-address 127.0.0.1)"
        f" (xend-tcp-xmlrpc-server-port {port}) (xend-relocation-hosts-allow '^127\\\\.0\\\\.')"
    )
    daemon.told()
    with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{port}/RPC2") as proxy:
        assert proxy.xend.domains(False) == ["Domain-0"]


def test_created_guests_have_the_script_that_counts_now(
    start: Start, client: Callable[[Path], xmlrpc.client.ServerProxy]
) -> None:
    daemon = start("(vif-script vif-route)")
    daemon.told()
    proxy = client(daemon.root / "var/run/xend/xmlrpc.sock")
    guest = ["memory", 16], ["device", ["vif", ["bridge", "br0"]]]
    proxy.xend.domain.new(["vm", ["name", "a"], *guest])
    assert "['script', '/etc/xen/scripts/vif-route']" in str(proxy.xend.domain("a", "full"))
    (daemon.root / "etc/xen/xend-config.sxp").write_text("(vif-script vif-nat)")
    daemon.process.send_signal(signal.SIGHUP)
    while "READY" not in daemon.told():
        pass
    proxy.xend.domain.new(["vm", ["name", "b"], *guest])
    assert "['script', '/etc/xen/scripts/vif-nat']" in str(proxy.xend.domain("b", "full"))


async def test_reload_takes_virsh_from_a_host(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    daemon = start(
        "(xendpy-libvirt-tcp-server yes) (xendpy-libvirt-tcp-address 127.0.0.1)"
        f" (xendpy-libvirt-tcp-port {port}) (xend-relocation-hosts-allow '^127\\\\.0\\\\.')"
    )
    daemon.told()
    await Client(*await asyncio.open_connection("127.0.0.1", port)).opened()
    file = daemon.root / "etc/xen/xend-config.sxp"
    file.write_text("(xend-relocation-hosts-allow '^10\\\\.')")
    daemon.process.send_signal(signal.SIGHUP)
    while "READY" not in daemon.told():
        pass
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    client.begin(OPEN, Writer().opt_string(None).u32(0).data())
    assert await client.ended()
