"""A stock virsh migrates between two daemons, in every way it knows, and stops when it is told."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.peers.hosts import DEADLINE_S, Host, until
from tests.peers.terminal import CTRL_C, on_terminal
from tests.peers.virsh import DOMAIN_0, listed, migrating, start, tcp, uri, virsh

pytestmark = [
    pytest.mark.skipif(shutil.which("virsh") is None, reason="needs Debian's libvirt-clients"),
    pytest.mark.timeout(720),
]

CANCELLED = "error: cancelled by virsh"


@pytest.mark.parametrize(
    "options",
    [("--live",), (), ("--live", "--p2p"), ("--live", "--verbose"), ("--live", "--parallel")],
    ids=["live", "offline", "p2p", "verbose", "parallel"],
)
def test_migrate(
    virsh_hosts: tuple[Host, Host], virsh_guest: str, options: tuple[str, ...]
) -> None:
    here, there = virsh_hosts
    done = virsh(here, "migrate", *options, virsh_guest, tcp(there))
    assert listed(here) == [DOMAIN_0]
    assert listed(there) == [DOMAIN_0, (virsh_guest, "idle")]
    shown = re.findall(r"\[ *(\d+) %\]", done.stderr + done.stdout)
    assert shown[-1:] == (["100"] if "--verbose" in options else [])
    virsh(there, "migrate", *options, virsh_guest, tcp(here))
    assert listed(here) == [DOMAIN_0, (virsh_guest, "idle")]


def test_migrate_direct_and_persistent(virsh_hosts: tuple[Host, Host], virsh_guest: str) -> None:
    here, there = virsh_hosts
    uri = f"xenmigr://{there.address}:{there.port}"
    virsh(here, "migrate", "--live", "--direct", "--migrateuri", uri, virsh_guest, "xen:///")
    assert listed(there) == [DOMAIN_0, (virsh_guest, "idle")]
    virsh(there, "migrate", "--live", "--persistent", virsh_guest, tcp(here))
    assert "Persistent:     yes" in virsh(here, "dominfo", virsh_guest).stdout


def test_migrate_under_another_name(virsh_hosts: tuple[Host, Host], virsh_guest: str) -> None:
    here, there = virsh_hosts
    virsh(here, "migrate", "--live", "--dname", "other", virsh_guest, tcp(there))
    assert listed(there) == [DOMAIN_0, ("other", "idle")]
    assert virsh(here, "domstate", "--reason", virsh_guest).stdout.strip() == "shut off (migrated)"
    virsh(there, "migrate", "--live", "--dname", virsh_guest, "other", tcp(here))
    assert listed(here) == [DOMAIN_0, (virsh_guest, "idle")]


def test_the_bandwidth_can_be_changed_in_mid_flight(
    virsh_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    here, there = virsh_hosts
    start(here, tmp_path, extra="tick=0.05", memory=512)  # eight minutes at this rate
    moving = migrating(here, "--live", "--bandwidth", "1", "testvm1", tcp(there))
    virsh(here, "migrate-setspeed", "testvm1", "0")
    assert moving.communicate(timeout=240)[1].strip() == ""
    assert moving.returncode == 0
    assert listed(there) == [DOMAIN_0, ("testvm1", "idle")]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--live", "--copy-storage-all"), "--copy-storage-all is not supported"),
        (("--live", "--p2p", "--tunnelled"), "--tunnelled is not supported"),
        (("--live", "--compressed"), "--compressed is not supported"),
        (
            ("--live", "--postcopy", "--timeout", "1", "--timeout-postcopy"),
            "--postcopy is not supported",
        ),
    ],
    ids=["storage", "tunnelled", "compressed", "postcopy"],
)
def test_what_cannot_be_is_refused_in_words(
    virsh_hosts: tuple[Host, Host], virsh_guest: str, options: tuple[str, ...], text: str
) -> None:
    here, there = virsh_hosts
    done = virsh(here, "migrate", *options, virsh_guest, tcp(there), check=False)
    assert done.returncode == 1
    assert text in done.stderr
    assert listed(here)[1] == (virsh_guest, "idle")


def test_a_refusal_of_the_target_reaches_the_screen(
    virsh_hosts: tuple[Host, Host], virsh_guest: str, tmp_path: Path
) -> None:
    here, there = virsh_hosts
    there.create("testvm1")
    done = virsh(here, "migrate", "--live", virsh_guest, tcp(there), check=False)
    assert done.returncode == 1
    assert "preflight failed: VM name 'testvm1' already exists as domain" in done.stderr
    assert listed(here)[1] == (virsh_guest, "idle")


def test_an_abort_in_mid_flight_leaves_the_guest_here(
    virsh_hosts: tuple[Host, Host], virsh_guest: str
) -> None:
    here, there = virsh_hosts
    virsh(here, "migrate-setspeed", virsh_guest, "4")
    moving = migrating(here, "--live", virsh_guest, tcp(there))
    virsh(here, "domjobabort", virsh_guest)
    assert "cancelled" in moving.communicate(timeout=120)[1]
    assert moving.returncode == 1
    assert listed(here)[1] == (virsh_guest, "idle")
    assert listed(there) == [DOMAIN_0]
    virsh(here, "migrate-setspeed", virsh_guest, "0")


def ticks(host: Host) -> int:
    """Return how often the guest has ticked, as its last line says."""
    return int(host.console("testvm1")[-1].rpartition("#")[2])


def test_ctrl_c_on_a_terminal_aborts_and_the_guest_goes_on_here(
    virsh_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    here, there = virsh_hosts
    start(here, tmp_path, extra="tick=0.05", memory=512)  # eight minutes at this rate
    argv = ["migrate", "--live", "--verbose", "--bandwidth", "1", "testvm1", tcp(there)]
    with on_terminal("virsh", "-c", uri(here), *argv) as (terminal, process):
        terminal.read_until("Migration: [")
        terminal.type(CTRL_C)
        # Virsh takes the key for itself after its first line; an interrupt that comes just
        # before it has is lost (strace shows it), and a user presses the key once more.
        while not terminal.read_until(CANCELLED, or_times=4, of="Migration: ["):
            terminal.type(CTRL_C)
        assert process.wait(DEADLINE_S) == 1
    assert listed(here)[1] == ("testvm1", "idle")
    assert listed(there) == [DOMAIN_0]
    before = ticks(here)
    until(lambda: ticks(here) > before, "it ticks on")


def test_a_timeout_stops_a_guest_that_never_would(
    virsh_hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    here, there = virsh_hosts
    start(here, tmp_path, extra="tick=0.05 dirty=8MiB/s wss=8MiB", memory=32)
    virsh(here, "migrate-setmaxdowntime", "testvm1", "1")
    # The first iteration takes eight seconds at least, and the timeout comes within it.
    options = ("--live", "--bandwidth", "4", "--timeout", "1", "--timeout-suspend")
    virsh(here, "migrate", *options, "testvm1", tcp(there))
    assert listed(there) == [DOMAIN_0, ("testvm1", "running")]
    told = here.last()
    assert (told["iteration"], told["converged"]) == (1, False)


@pytest.mark.parametrize(
    ("interval_s", "count", "memory"),
    [(1, 2, 12), pytest.param(5, 3, 48, marks=pytest.mark.slow)],
    ids=["short", "long"],
)
def test_a_client_that_pings_is_answered_while_a_guest_moves(
    virsh_hosts: tuple[Host, Host], tmp_path: Path, interval_s: int, count: int, memory: int
) -> None:
    here, there = virsh_hosts
    # A second for each MiB: longer than a client waits that hears nothing.
    assert memory > 2 * interval_s * (count + 1)
    start(here, tmp_path, extra="tick=0.05", memory=memory)
    argv = ["-k", str(interval_s), "-K", str(count), "-c", uri(here), "migrate", "--live"]
    done = subprocess.run(
        ["virsh", *argv, "--bandwidth", "1", "testvm1", tcp(there)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert listed(there) == [DOMAIN_0, ("testvm1", "idle")]
