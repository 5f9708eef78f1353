"""The chapter's commands with a stock virsh, on two daemons; no libvirtd anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.hosts import Host, until
from tests.peers.virsh import DOMAIN_0, GUEST, listed, uri, virsh

PROJECT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(shutil.which("virsh") is None, reason="needs Debian's libvirt-clients"),
    pytest.mark.timeout(720),
]


def test_list_start_save_restore(
    virsh_hosts: tuple[Host, Host], virsh_guest: str, tmp_path: Path
) -> None:
    here, _ = virsh_hosts
    assert listed(here) == [DOMAIN_0, (virsh_guest, "idle")]
    file = tmp_path / "testvm1.sav"
    assert "saved to" in virsh(here, "save", virsh_guest, str(file)).stdout
    assert listed(here) == [DOMAIN_0]
    assert listed(here, "--all") == [DOMAIN_0, (virsh_guest, "shut off")]
    assert virsh(here, "domstate", "--reason", virsh_guest).stdout.strip() == "shut off (saved)"
    assert file.read_bytes()[:16] == b"LinuxGuestRecord"
    virsh(here, "restore", str(file))
    assert listed(here) == [DOMAIN_0, (virsh_guest, "idle")]


def test_suspend_resume_and_what_is_said_of_a_guest(
    virsh_hosts: tuple[Host, Host], virsh_guest: str
) -> None:
    here, _ = virsh_hosts
    virsh(here, "suspend", virsh_guest)
    assert listed(here)[1] == (virsh_guest, "paused")
    assert virsh(here, "domstate", "--reason", virsh_guest).stdout.strip() == "paused (user)"
    virsh(here, "resume", virsh_guest)
    assert listed(here)[1] == (virsh_guest, "idle")
    assert "Max memory:     16384 KiB" in virsh(here, "dominfo", virsh_guest).stdout
    assert "<kernel>/xendpy:ticker</kernel>" in virsh(here, "dumpxml", virsh_guest).stdout
    assert "balloon.maximum=16384" in virsh(here, "domstats", virsh_guest).stdout
    assert virsh(here, "domstate", "--reason", virsh_guest).stdout.strip() == "idle (unknown)"
    virsh(here, "autostart", virsh_guest)
    assert "Autostart:      enable" in virsh(here, "dominfo", virsh_guest).stdout
    assert "CPU(s):" in virsh(here, "nodeinfo").stdout
    assert "<capabilities>" in virsh(here, "capabilities").stdout


def test_the_read_only_socket_changes_nothing(
    virsh_hosts: tuple[Host, Host], virsh_guest: str
) -> None:
    ro = ["virsh", "-c", uri(virsh_hosts[0], "virtxend-sock-ro")]
    shown = subprocess.run([*ro, "list"], capture_output=True, text=True)
    assert virsh_guest in shown.stdout
    done = subprocess.run([*ro, "destroy", virsh_guest], capture_output=True, text=True)
    assert done.returncode == 1 and "forbidden for read only access" in done.stderr


SSH = """\
#!/bin/sh
while test "$1" != --; do shift; done
shift 2
XENDPY_ROOT={root} exec sh -c "$*"
"""


def test_over_ssh_the_helper_leads_to_the_daemon(
    virsh_hosts: tuple[Host, Host], virsh_guest: str, tmp_path: Path
) -> None:
    # As `make install` puts it; ssh is played by a shell that runs the client's script here.
    there = tmp_path / "usr"
    (there / "bin").mkdir(parents=True)
    (there / "lib").mkdir()
    (there / "lib/xendpy").symlink_to(sys.prefix)
    shutil.copy(PROJECT / "systemd/command", there / "bin/virt-ssh-helper")
    (there / "bin/virt-ssh-helper").chmod(0o755)
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH.format(root=virsh_hosts[0].root))
    ssh.chmod(0o755)
    environ = os.environ | {"PATH": f"{there}/bin:{os.environ['PATH']}"}
    argv = ["virsh", "-c", f"xen+ssh://root@et-virt07/system?command={ssh}"]
    shown = subprocess.run([*argv, "list"], env=environ, capture_output=True, text=True)
    assert virsh_guest in shown.stdout, shown.stderr
    argv.insert(1, "-r")
    done = subprocess.run(
        [*argv, "destroy", virsh_guest], env=environ, capture_output=True, text=True
    )
    assert "read only" in done.stderr


def test_creating_what_needs_xen_says_so(virsh_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    file = tmp_path / "real.xml"
    file.write_text(GUEST.format(extra="", memory=16).replace("xendpy:ticker", "/boot/vmlinuz"))
    done = virsh(virsh_hosts[0], "create", str(file), check=False)
    assert done.returncode == 1 and "needs Xen" in done.stderr
    assert listed(virsh_hosts[0], "--all") == [DOMAIN_0]


def test_lifecycle_events_are_told(virsh_hosts: tuple[Host, Host], virsh_guest: str) -> None:
    here, _ = virsh_hosts
    watching = subprocess.Popen(
        ["virsh", "-c", uri(here), "event", "--event", "lifecycle", "--timeout", "30"],
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: "EVENT_CALLBACK_REGISTER_ANY" in here.log(), "it is registered")
    virsh(here, "suspend", virsh_guest)
    said = watching.communicate(timeout=160)[0]
    assert f"event 'lifecycle' for domain '{virsh_guest}': Suspended Paused" in said
    virsh(here, "resume", virsh_guest)
