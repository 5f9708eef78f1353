"""What else a stock virsh may be told: it is done, or refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.peers.hosts import Host
from tests.peers.virsh import DOMAIN_0, listed, virsh

pytestmark = [
    pytest.mark.skipif(shutil.which("virsh") is None, reason="needs Debian's libvirt-clients"),
    pytest.mark.timeout(720),
]


# What a user of virsh may try on a guest, and what is on the screen then; the first word of a
# refusal is virsh's own.
VERBS = [
    ("domuuid testvm1", "-"),
    ("domid testvm1", ""),
    ("vcpucount testvm1", "current      live           1"),
    ("vcpuinfo testvm1", "State:          blocked"),
    ("dommemstat testvm1", "actual 16384"),
    ("setmem testvm1 8M --config", ""),
    ("setvcpus testvm1 2 --config --maximum", ""),
    ("freecell --all", "Total:"),
    ("nodememstats", "free   :"),
    ("nodecpumap", "CPUs online:"),
    ("domcapabilities --machine xenpv", "<domain>xen</domain>"),
    ("domxml-to-native xen-sxpr --domain testvm1", "(kernel xendpy:ticker)"),
    ("domrename testvm1 testvm1", "Domain successfully renamed"),
    ("net-list --all", "Name"),
    ("pool-list --all", "Name"),
    ("secret-list", "UUID"),
    ("version --daemon", "Running against daemon: 9.0.0"),
]
REFUSALS = [
    ("setmem testvm1 8M --live", "the store driver cannot change a guest's memory"),
    ("setvcpus testvm1 1 --live", "the store driver cannot change a guest's vcpus"),
    ("vcpucount testvm1 --guest", "--guest is not supported by xendpy"),
    ("destroy --graceful testvm1", "--graceful is not supported by xendpy"),
    ("shutdown testvm1 --mode acpi", "--mode acpi is not supported by xendpy"),
    ("screenshot testvm1", "not supported by the connection driver: virDomainScreenshot"),
    ("snapshot-list testvm1", "not supported by the connection driver: virDomainSnapshotNum"),
    ("qemu-monitor-command testvm1 info", "QEMU's monitor is not served by xendpy"),
    ("domxml-from-native xen-xm /dev/null", "config type xen-xm is not known, xen-sxpr is"),
    ("managedsave-dumpxml testvm1", "domain does not have managed save image"),
    ("save-image-dumpxml /dev/null", "not a valid guest state file"),
]


def test_what_can_be_done_is_done_and_what_cannot_is_refused_by_name(
    virsh_hosts: tuple[Host, Host], virsh_guest: str
) -> None:
    here, _ = virsh_hosts
    for line, text in VERBS:
        assert text in virsh(here, *line.split()).stdout, line
    for line, text in REFUSALS:
        done = virsh(here, *line.split(), check=False)
        assert done.returncode == 1, line
        assert text in done.stderr, line
    assert listed(here) == [DOMAIN_0, (virsh_guest, "idle")]


def test_the_xml_of_a_save_file_is_that_of_its_guest(
    virsh_hosts: tuple[Host, Host], virsh_guest: str, tmp_path: Path
) -> None:
    here, _ = virsh_hosts
    file = tmp_path / "testvm1.sav"
    virsh(here, "save", virsh_guest, str(file))
    assert "<name>testvm1</name>" in virsh(here, "save-image-dumpxml", str(file)).stdout


def test_guest_that_is_defined_again_keeps_what_its_xml_has_no_words_for(
    virsh_hosts: tuple[Host, Host], virsh_guest: str, tmp_path: Path
) -> None:
    here, _ = virsh_hosts
    file = tmp_path / "testvm1.xml"
    virsh(here, "autostart", virsh_guest)
    text = virsh(here, "dumpxml", "--inactive", virsh_guest).stdout
    file.write_text(text.replace("<on_crash>restart<", "<on_crash>destroy<"))
    assert file.read_text() != text
    virsh(here, "define", str(file))
    assert "<on_crash>destroy</on_crash>" in virsh(here, "dumpxml", "--inactive", "testvm1").stdout
    assert "Autostart:      enable" in virsh(here, "dominfo", virsh_guest).stdout
    file.write_text(text.replace("<devices>", "<devices><interface type='network'/>"))
    refused = virsh(here, "define", str(file), check=False)
    assert refused.returncode == 1
    assert "not supported: <interface type='network'>" in refused.stderr
