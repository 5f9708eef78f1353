from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control.daemons import Start, starter
from tests.control.fakes import FakeHypervisor
from xendpy.control.domain_methods import DomainMethods
from xendpy.control.guests import Guests
from xendpy.control.managed import ManagedDomains
from xendpy.control.migrations import Migrations
from xendpy.control.node import Host
from xendpy.control.node_methods import NodeMethods
from xendpy.control.rpc_server import RpcServer
from xendpy.control.workers import Workers
from xendpy.control.xmlrpc import Dispatcher


@pytest.fixture
def hypervisor() -> FakeHypervisor:
    return FakeHypervisor()


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers()
    yield workers
    workers.close()


@pytest.fixture
def guests(hypervisor: FakeHypervisor, workers: Workers, tmp_path: Path) -> Guests:
    return Guests(hypervisor, ManagedDomains(tmp_path / "domains"), workers, Host())


@pytest.fixture
def dispatcher(guests: Guests, tmp_path: Path) -> Dispatcher:
    node = NodeMethods(guests, Migrations(), str(tmp_path / "xend.log"))
    return Dispatcher({**DomainMethods(guests).table(), **node.table()})


@pytest.fixture
async def server(dispatcher: Dispatcher, tmp_path: Path) -> AsyncIterator[Path]:
    """An XML-RPC server on a unix socket, which is the value."""
    path = tmp_path / "run" / "xmlrpc.sock"
    async with RpcServer(dispatcher) as server:
        await server.listen_unix(path)
        yield path


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=80)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(80)
        self.sock.connect(str(self._path))


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _Connection(self._path)


@pytest.fixture
def client() -> Callable[[Path], xmlrpc.client.ServerProxy]:
    """Make a stock client of a unix socket; call it from another thread than the loop's."""

    def make(path: Path) -> xmlrpc.client.ServerProxy:
        return xmlrpc.client.ServerProxy(
            "http://xend/RPC2", transport=_Transport(path), allow_none=True
        )

    return make


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starter(tmp_path) as start:
        yield start
