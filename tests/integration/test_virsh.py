"""The chapter's commands with a stock virsh, on two daemons; no libvirtd anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.hosts import Host, pair, until

PROJECT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(shutil.which("virsh") is None, reason="needs Debian's libvirt-clients"),
    pytest.mark.timeout(720),
]

MORE = """\
(xendpy-libvirt-tcp-server yes)
(xendpy-libvirt-tcp-address {address})
(xendpy-libvirt-tcp-port 16519)
"""
GUEST = """\
<domain type='xen'>
  <name>testvm1</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os><type>linux</type><kernel>xendpy:ticker</kernel><cmdline>{extra}</cmdline></os>
  <devices/>
</domain>
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    directory = tmp_path_factory.mktemp("virsh")
    with pair(directory) as both:
        for host in both:
            file = host.root / "etc/xen/xend-config.sxp"
            text = file.read_text().replace("(xendpy-libvirt-server no)\n", "")
            file.write_text(text + MORE.format(address=host.address))
            host.stop()
            host.start()
        yield both


def uri(host: Host, socket: str = "virtxend-sock") -> str:
    return f"xen+unix:///system?socket={host.root}/run/libvirt/{socket}"


def virsh(host: Host, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["virsh", "-c", uri(host), *argv], capture_output=True, text=True, timeout=240, check=False
    )
    assert not check or done.returncode == 0, f"virsh {argv}: {done.stdout}{done.stderr}"
    return done


def listed(host: Host, *options: str) -> list[tuple[str, str]]:
    """Return (name, state) of every line of `virsh list`."""
    lines = virsh(host, "list", *options).stdout.splitlines()[2:]
    words = [line.split(maxsplit=2) for line in lines if line.strip()]
    return [(word[1], word[2].strip()) for word in words]


@pytest.fixture
def guest(hosts: tuple[Host, Host], tmp_path: Path) -> Iterator[str]:
    here, _ = hosts
    start(here, tmp_path, extra="tick=0.05")
    yield "testvm1"
    clear(hosts)


def start(host: Host, directory: Path, *, extra: str, memory: int = 16) -> None:
    """Define and start testvm1."""
    file = directory / "testvm1.xml"
    file.write_text(GUEST.format(extra=extra, memory=memory))
    virsh(host, "define", str(file))
    virsh(host, "start", "testvm1")


def clear(hosts: tuple[Host, Host]) -> None:
    """Let no guest be left."""
    for host in hosts:
        virsh(host, "destroy", "testvm1", check=False)
        virsh(host, "undefine", "testvm1", check=False)
        until(lambda host=host: listed(host, "--all") == [DOMAIN_0], "nothing is left")


DOMAIN_0 = ("Domain-0", "running")
TCP = "xen+tcp://127.0.0.2:16519/system"


def test_list_start_save_restore(hosts: tuple[Host, Host], guest: str, tmp_path: Path) -> None:
    here, _ = hosts
    assert listed(here) == [DOMAIN_0, (guest, "idle")]
    file = tmp_path / "testvm1.sav"
    assert "saved to" in virsh(here, "save", guest, str(file)).stdout
    assert listed(here) == [DOMAIN_0]
    assert listed(here, "--all") == [DOMAIN_0, (guest, "shut off")]
    assert virsh(here, "domstate", "--reason", guest).stdout.strip() == "shut off (saved)"
    assert file.read_bytes()[:16] == b"LinuxGuestRecord"
    virsh(here, "restore", str(file))
    assert listed(here) == [DOMAIN_0, (guest, "idle")]


def test_suspend_resume_and_what_is_said_of_a_guest(hosts: tuple[Host, Host], guest: str) -> None:
    here, _ = hosts
    virsh(here, "suspend", guest)
    assert listed(here)[1] == (guest, "paused")
    assert virsh(here, "domstate", "--reason", guest).stdout.strip() == "paused (user)"
    virsh(here, "resume", guest)
    assert listed(here)[1] == (guest, "idle")
    assert "Max memory:     16384 KiB" in virsh(here, "dominfo", guest).stdout
    assert "<kernel>/xendpy:ticker</kernel>" in virsh(here, "dumpxml", guest).stdout
    assert "balloon.maximum=16384" in virsh(here, "domstats", guest).stdout
    assert virsh(here, "domstate", "--reason", guest).stdout.strip() == "idle (unknown)"
    virsh(here, "autostart", guest)
    assert "Autostart:      enable" in virsh(here, "dominfo", guest).stdout
    assert "CPU(s):" in virsh(here, "nodeinfo").stdout
    assert "<capabilities>" in virsh(here, "capabilities").stdout


@pytest.mark.parametrize(
    "options",
    [("--live",), (), ("--live", "--p2p"), ("--live", "--verbose")],
    ids=["live", "offline", "p2p", "verbose"],
)
def test_migrate(hosts: tuple[Host, Host], guest: str, options: tuple[str, ...]) -> None:
    here, there = hosts
    done = virsh(here, "migrate", *options, guest, TCP)
    assert listed(here) == [DOMAIN_0]
    assert listed(there) == [DOMAIN_0, (guest, "idle")]
    assert ("100 %" in done.stderr + done.stdout) == ("--verbose" in options)
    virsh(there, "migrate", *options, guest, TCP.replace("127.0.0.2", "127.0.0.1"))
    assert listed(here) == [DOMAIN_0, (guest, "idle")]


def test_migrate_direct_and_persistent(hosts: tuple[Host, Host], guest: str) -> None:
    here, there = hosts
    uri = f"xenmigr://{there.address}:{there.port}"
    virsh(here, "migrate", "--live", "--direct", "--migrateuri", uri, guest, "xen:///")
    assert listed(there) == [DOMAIN_0, (guest, "idle")]
    virsh(there, "migrate", "--live", "--persistent", guest, "xen+tcp://127.0.0.1:16519/system")
    assert "Persistent:     yes" in virsh(here, "dominfo", guest).stdout


def test_migrate_under_another_name(hosts: tuple[Host, Host], guest: str) -> None:
    here, there = hosts
    virsh(here, "migrate", "--live", "--dname", "other", guest, TCP)
    assert listed(there) == [DOMAIN_0, ("other", "idle")]
    assert virsh(here, "domstate", "--reason", guest).stdout.strip() == "shut off (migrated)"
    back = TCP.replace("127.0.0.2", "127.0.0.1")
    virsh(there, "migrate", "--live", "--dname", guest, "other", back)
    assert listed(here) == [DOMAIN_0, (guest, "idle")]


def test_the_bandwidth_can_be_changed_in_mid_flight(
    hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    here, there = hosts
    start(here, tmp_path, extra="tick=0.05", memory=512)  # eight minutes at this rate
    moving = migrating(here, "--live", "--bandwidth", "1", "testvm1", TCP)
    virsh(here, "migrate-setspeed", "testvm1", "0")
    assert moving.communicate(timeout=240)[1].strip() == ""
    assert moving.returncode == 0
    assert listed(there) == [DOMAIN_0, ("testvm1", "idle")]
    clear(hosts)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--live", "--copy-storage-all"), "--copy-storage-all is not supported"),
        (("--live", "--p2p", "--tunnelled"), "--tunnelled is not supported"),
        (("--live", "--compressed"), "--compressed is not supported"),
    ],
    ids=["storage", "tunnelled", "compressed"],
)
def test_what_cannot_be_is_refused_in_words(
    hosts: tuple[Host, Host], guest: str, options: tuple[str, ...], text: str
) -> None:
    done = virsh(hosts[0], "migrate", *options, guest, TCP, check=False)
    assert done.returncode == 1
    assert text in done.stderr
    assert listed(hosts[0])[1] == (guest, "idle")


def test_a_refusal_of_the_target_reaches_the_screen(
    hosts: tuple[Host, Host], guest: str, tmp_path: Path
) -> None:
    here, there = hosts
    there.create("testvm1")
    done = virsh(here, "migrate", "--live", guest, TCP, check=False)
    assert done.returncode == 1
    assert "preflight failed: VM name 'testvm1' already exists as domain" in done.stderr
    assert listed(here)[1] == (guest, "idle")


def migrating(host: Host, *argv: str) -> subprocess.Popen[str]:
    """Begin a migration of testvm1, and return it when it is under way."""
    moving = subprocess.Popen(
        ["virsh", "-c", uri(host), "migrate", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: "Data processed" in virsh(host, "domjobinfo", "testvm1").stdout, "a job")
    return moving


def test_an_abort_in_mid_flight_leaves_the_guest_here(
    hosts: tuple[Host, Host], guest: str
) -> None:
    here, there = hosts
    virsh(here, "migrate-setspeed", guest, "4")
    moving = migrating(here, "--live", guest, TCP)
    virsh(here, "domjobabort", guest)
    assert "cancelled" in moving.communicate(timeout=120)[1]
    assert moving.returncode == 1
    assert listed(here)[1] == (guest, "idle")
    assert listed(there) == [DOMAIN_0]
    virsh(here, "migrate-setspeed", guest, "0")


def test_the_read_only_socket_changes_nothing(hosts: tuple[Host, Host], guest: str) -> None:
    ro = ["virsh", "-c", uri(hosts[0], "virtxend-sock-ro")]
    shown = subprocess.run([*ro, "list"], capture_output=True, text=True)
    assert guest in shown.stdout
    done = subprocess.run([*ro, "destroy", guest], capture_output=True, text=True)
    assert done.returncode == 1 and "forbidden for read only access" in done.stderr


SSH = """\
#!/bin/sh
while test "$1" != --; do shift; done
shift 2
XENDPY_ROOT={root} exec sh -c "$*"
"""


def test_over_ssh_the_helper_leads_to_the_daemon(
    hosts: tuple[Host, Host], guest: str, tmp_path: Path
) -> None:
    # As `make install` puts it; ssh is played by a shell that runs the client's script here.
    there = tmp_path / "usr"
    (there / "bin").mkdir(parents=True)
    (there / "lib").mkdir()
    (there / "lib/xendpy").symlink_to(sys.prefix)
    shutil.copy(PROJECT / "systemd/command", there / "bin/virt-ssh-helper")
    (there / "bin/virt-ssh-helper").chmod(0o755)
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH.format(root=hosts[0].root))
    ssh.chmod(0o755)
    environ = os.environ | {"PATH": f"{there}/bin:{os.environ['PATH']}"}
    argv = ["virsh", "-c", f"xen+ssh://root@et-virt07/system?command={ssh}"]
    shown = subprocess.run([*argv, "list"], env=environ, capture_output=True, text=True)
    assert guest in shown.stdout, shown.stderr
    argv.insert(1, "-r")
    done = subprocess.run([*argv, "destroy", guest], env=environ, capture_output=True, text=True)
    assert "read only" in done.stderr


def test_creating_what_needs_xen_says_so(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    file = tmp_path / "real.xml"
    file.write_text(GUEST.format(extra="", memory=16).replace("xendpy:ticker", "/boot/vmlinuz"))
    done = virsh(hosts[0], "create", str(file), check=False)
    assert done.returncode == 1 and "needs Xen" in done.stderr
    assert listed(hosts[0], "--all") == [DOMAIN_0]


def test_lifecycle_events_are_told(hosts: tuple[Host, Host], guest: str) -> None:
    here, _ = hosts
    watching = subprocess.Popen(
        ["virsh", "-c", uri(here), "event", "--event", "lifecycle", "--timeout", "30"],
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: "EVENT_CALLBACK_REGISTER_ANY" in here.log(), "it is registered")
    virsh(here, "suspend", guest)
    said = watching.communicate(timeout=160)[0]
    assert f"event 'lifecycle' for domain '{guest}': Suspended Paused" in said
    virsh(here, "resume", guest)
