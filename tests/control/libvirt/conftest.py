from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.control.fakes import FakeHypervisor, guest_config
from xendpy.config import XendConfig
from xendpy.control.dialling import Dialler
from xendpy.control.guests import Guests
from xendpy.control.libvirt.server import LibvirtServer
from xendpy.control.libvirt.session import Host
from xendpy.control.migrations import Migrations
from xendpy.control.transfers import Transfers
from xendpy.control.wiring import relocation_settings
from xendpy.hypervisor.durable import Durable
from xendpy.migration.journal import Journal
from xendpy.paths import Paths


@pytest.fixture
def host(guests: Guests, tmp_path: Path) -> Host:
    paths = Paths(tmp_path)
    journal = Journal(tmp_path / "migrations", Durable(), time.time)
    migrations = Migrations()
    dialler = Dialler("a host", XendConfig, paths)
    return Host(
        guests=guests,
        transfers=Transfers(guests, journal, migrations, dialler),
        migrations=migrations,
        relocation=lambda: relocation_settings(XendConfig(), paths),
        host_name=lambda: "et-virt07",
        max_guest_memory_mib=lambda: 0,
    )


@pytest.fixture
async def sockets(
    host: Host, hypervisor: FakeHypervisor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Path]:
    """A server's directory; whatever came, no call of it failed in a way of its own."""
    hypervisor.add(guest_config("web1"))
    async with LibvirtServer(host) as server:
        await server.listen_unix(tmp_path / "run")
        yield tmp_path / "run"
    assert not [record for record in caplog.records if record.exc_info]
