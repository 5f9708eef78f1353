"""virt-install as it is, against a daemon without Xen: the chapter's line, and today's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.hosts import Host, host_port, serving, until
from tests.trees import TREEINFO


def _own_mounts() -> bool:
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


pytestmark = [
    pytest.mark.skipif(shutil.which("virt-install") is None, reason="needs Debian's virtinst"),
    pytest.mark.skipif(not _own_mounts(), reason="needs root and mount namespaces of its own"),
    pytest.mark.timeout(720),
]

# In a mount namespace of its own: the daemon's sockets where every client looks for them, and the
# directory that virt-install keeps a Xen host's kernels in. $1: the daemon's run/libvirt.
SESSION = """
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/libvirt /run/var-lib
mount --bind "$1" /run/libvirt
mount --rbind /var/lib /run/var-lib
mount -t tmpfs tmpfs /var/lib
ln -s /run/var-lib/* /var/lib/
rm -f /var/lib/xen
mkdir /var/lib/xen
shift
"$@"
"""
CHAPTER = "-p -f {disk} -s 5 -n testvm1 --vnc -r 1024 -l {tree} -b xenbr1"
TODAY = (
    "--paravirt --name testvm1 --memory 1024 --disk path={disk},size=5 --graphics vnc"
    " --network bridge=xenbr1 --location {tree}"
)
TEST_GUEST = (
    "--paravirt --name testvm1 --memory 16 --disk path={disk},size=0.1 --graphics vnc"
    " --network bridge=xenbr1 --import --boot kernel=/xendpy:ticker,kernel_args=tick=0.05"
)
ALWAYS = "--connect xen:///system --osinfo detect=on,require=off --noautoconsole"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host("et-virt07", tmp_path / "host", "127.0.0.1", host_port())
    host.configure()
    file = host.root / "etc/xen/xend-config.sxp"
    file.write_text(file.read_text().replace("(xendpy-libvirt-server no)\n", ""))
    with serving(host):
        yield host


def in_session(host: Host, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a libvirt client with no option that says where the daemon is."""
    session = ["unshare", "--mount", "sh", "-c", SESSION, "sh", f"{host.root}/run/libvirt"]
    return subprocess.run(
        [*session, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def install(host: Host, line: str, directory: Path) -> subprocess.CompletedProcess[str]:
    tree = directory / "tree"
    (tree / "images/xen").mkdir(parents=True)
    (tree / ".treeinfo").write_text(TREEINFO)
    for name in ("vmlinuz", "initrd.img"):
        (tree / "images/xen" / name).write_bytes(b"\0" * 4096)
    (directory / "disks").mkdir()
    words = f"{ALWAYS} {line}".format(disk=directory / "disks/testvm1.img", tree=tree)
    return in_session(host, "virt-install", *words.split())


@pytest.mark.parametrize("line", [CHAPTER, TODAY], ids=["chapter", "today"])
def test_what_needs_xen_is_refused_and_leaves_nothing_but_its_disk(
    host: Host, tmp_path: Path, line: str
) -> None:
    done = install(host, line, tmp_path)
    assert done.returncode == 1
    assert "'testvm1' needs Xen" in done.stdout + done.stderr
    assert host.guests() == []
    assert "testvm1" not in host.xm("list", "--long").stdout
    assert {file.name for file in (tmp_path / "disks").iterdir()} <= {"testvm1.img"}


def test_what_can_run_here_is_installed_with_its_disk(host: Host, tmp_path: Path) -> None:
    done = install(host, TEST_GUEST, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "disks/testvm1.img").stat().st_size == 107374182
    until(lambda: host.guests() == ["testvm1"], "it runs")
    said = in_session(host, "virsh", "-c", "xen:///", "dominfo", "testvm1").stdout
    assert "State:          idle" in said
    assert "Persistent:     yes" in said
