"""A daemon inside this process: the service itself on a root of its own, with real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.peers.ports import free_port
from xendpy.config_file import load
from xendpy.control.notify import Notifier
from xendpy.control.service import Service
from xendpy.paths import Paths

DEADLINE_S = 60.0
CONFIG = """(xend-relocation-server yes) (xend-relocation-address 127.0.0.1)
(xend-relocation-port {port}) (xendpy-host-name {name}) (xendpy-hypervisor store)
(xendpy-libvirt-server no) (xend-unix-xmlrpc-server no) (xendpy-stop-while-moving cut)
(xendpy-peer {peer} (address 127.0.0.1) (port {peer_port}))
"""


class ServiceHost:
    """One daemon; entering it waits until it listens, leaving until it has ended."""

    def __init__(self, root: Path, config: str) -> None:
        self.paths = Paths(root)
        self.paths.config_file.parent.mkdir(parents=True, exist_ok=True)
        self.paths.config_file.write_text(config)
        self.service: Service
        self._task: asyncio.Task[int]

    async def __aenter__(self) -> ServiceHost:
        loaded = load(self.paths.config_file)
        self.service = Service(
            self.paths, loaded, notifier=Notifier(), log_file="", boot_id="a boot"
        )
        ready = asyncio.Event()
        self._task = asyncio.create_task(self.service.serve(ready.set))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait(
            [self._task, waiting], timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED
        )
        if not ready.is_set():
            waiting.cancel()
            self._task.result()
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._task.done():
            self.service.stop()
        await asyncio.wait_for(self._task, DEADLINE_S)


def pair_configs() -> dict[str, str]:
    """Return the configurations of two hosts, a and b, that know each other."""
    ports = {name: free_port() for name in ("a", "b")}
    return {
        name: CONFIG.format(name=name, port=ports[name], peer=peer, peer_port=ports[peer])
        for name, peer in (("a", "b"), ("b", "a"))
    }


@asynccontextmanager
async def pair_of_services(
    place: Path, configs: dict[str, str] | None = None
) -> AsyncIterator[tuple[ServiceHost, ServiceHost]]:
    """Run hosts a and b below `place`."""
    made = configs or pair_configs()
    async with (
        ServiceHost(place / "b", made["b"]) as there,
        ServiceHost(place / "a", made["a"]) as here,
    ):
        yield here, there
