from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.hosts import Host, host_port, pair
from tests.peers.virsh import MORE, clear, start


@pytest.fixture(scope="module")
def virsh_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    directory = tmp_path_factory.mktemp("virsh")
    with pair(directory) as both:
        port = host_port()
        for host in both:
            file = host.root / "etc/xen/xend-config.sxp"
            text = file.read_text().replace("(xendpy-libvirt-server no)\n", "")
            file.write_text(text + MORE.format(address=host.address, port=port))
            host.stop()
            host.start()
        yield both


@pytest.fixture
def virsh_hosts(virsh_pair: tuple[Host, Host]) -> Iterator[tuple[Host, Host]]:
    """Two daemons; what a test leaves on them must not be the failure of the next."""
    yield virsh_pair
    clear(virsh_pair)


@pytest.fixture
def virsh_guest(virsh_hosts: tuple[Host, Host], tmp_path: Path) -> str:
    here, _ = virsh_hosts
    start(here, tmp_path, extra="tick=0.05")
    return "testvm1"
