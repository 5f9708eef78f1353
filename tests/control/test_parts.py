"""What the parts of a daemon have in common."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.libvirt.client import Client
from xendpy.config import XendConfig
from xendpy.control.parts import Parts
from xendpy.control.workers import Workers
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.paths import Paths
from xendpy.relocation.hosts import HostsAllow


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreHypervisor]:
    opened = StoreHypervisor(Paths(tmp_path))
    yield opened
    opened.close()


@pytest.mark.parametrize("confirm", [True, False])
async def test_a_forged_name_does_not_rule_over_libvirts_port(
    store: StoreHypervisor,
    workers: Workers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    confirm: bool,
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda address: "trusted.invalid")
    parts = Parts(
        XendConfig(relocation_forward_confirm=confirm),
        Paths(tmp_path),
        store,
        workers,
        log_file="",
        changed=lambda: None,
    )
    async with parts.libvirt as server:
        port = await server.listen_tcp("127.0.0.1", 0, HostsAllow.parse(r"^trusted\.invalid$"))
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        if confirm:
            assert await client.ended()
        else:
            await client.opened()
        client.close()
