"""A stock virsh against daemons of ours, and the guest it plays with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.peers.hosts import Host, until

MORE = """\
(xendpy-libvirt-tcp-server yes)
(xendpy-libvirt-tcp-address {address})
(xendpy-libvirt-tcp-port {port})
"""
GUEST = """\
<domain type='xen'>
  <name>testvm1</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os><type>linux</type><kernel>xendpy:ticker</kernel><cmdline>{extra}</cmdline></os>
  <devices/>
</domain>
"""
DOMAIN_0 = ("Domain-0", "running")


def uri(host: Host, socket: str = "virtxend-sock") -> str:
    return f"xen+unix:///system?socket={host.root}/run/libvirt/{socket}"


def tcp(host: Host) -> str:
    """Return the URI by which another host's virsh reaches `host`, configured with MORE."""
    config = (host.root / "etc/xen/xend-config.sxp").read_text()
    port = config.partition("(xendpy-libvirt-tcp-port ")[2].partition(")")[0]
    return f"xen+tcp://{host.address}:{port}/system"


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
