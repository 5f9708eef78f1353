"""Disks that are full, read-only or broken while guests come in and are saved."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from tests.disks import filled, small_disk
from tests.failing import FailingDurable
from tests.guests import guest, send_guest, span
from tests.peers.relocation_host import read_all
from tests.peers.xend import Sender
from tests.soak import disk
from tests.soak.records import BUFFER_BYTES, hasty
from xendpy.errors import HypervisorError
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.saved_file import Cancel, save_file
from xendpy.paths import Paths

BATCH_BYTES = 33 * 4096  # and what goes before its pages
READY_OK = b"(ready receive)\n(ok)\n"


async def test_a_disk_that_fails_costs_no_guest(tmp_path: Path) -> None:
    stream = disk.live()
    faults = await disk.all_faults(tmp_path / "count", stream)
    chosen = faults[:: len(faults) // 15 + 1]  # all of them in tests/soak
    assert {fault.number for fault in chosen} == {errno.EIO, errno.ENOSPC, errno.EROFS}
    became = [
        await disk.run(tmp_path / str(number), stream, fault)
        for number, fault in enumerate(chosen)
    ]
    assert {"refused", "kept"} <= set(became)


async def test_a_disk_that_goes_read_only_at_the_end_costs_no_guest(tmp_path: Path) -> None:
    stream = disk.cold()
    total = await disk.count(tmp_path / "count", stream)
    # From records behind the last page on: the sender may have let go already.
    for at in range(total // 2, total + 1, 2):
        fault = disk.DiskFault(errno.EROFS, at)
        assert await disk.run(tmp_path / str(at), stream, fault) in ("kept", "whole")


async def test_a_guest_that_cannot_be_moved_is_kept_where_it_came_in(tmp_path: Path) -> None:
    stream = disk.cold()
    async with hasty(tmp_path) as host:
        durable = host.store._directory.durable = FailingDurable()
        total = await disk.count(tmp_path / "count", stream)
        durable.arm(errno.EROFS, total // 2)
        assert not (await asyncio.to_thread(_migrate, host.address, stream.wire))
        reason = (await host.ended()).progress.reason
        place = tmp_path / "var/lib/xend/store/incoming" / stream.uuid
        assert f"what came is kept: {place} (Read-only file system): copy it away" in reason
        assert host.store.partials() == []
    store = StoreHypervisor(Paths(tmp_path))
    (partial,) = store.partials()
    assert store.domains() == [] and not place.exists()
    assert (partial.path / "memory").stat().st_size == disk.MEMORY_MIB << 20
    store.close()


def _migrate(address: tuple[str, int], wire: bytes) -> bool:
    """Send a guest as a xend does; say whether it lives on there."""
    return Sender(address, "4.4", buffer_bytes=BUFFER_BYTES).migrate(wire).guest_lives


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
async def test_a_disk_that_fills_up_while_a_guest_comes_in_costs_none(
    tmp_path: Path, share: float
) -> None:
    wire = disk.live().wire
    first = int(len(wire) * share) - 200  # before the end even where the share is the whole
    with small_disk(tmp_path / "small", 8) as place:
        async with hasty(place) as host:
            with await asyncio.to_thread(host.connect) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
                await asyncio.to_thread(sock.sendall, b"receive\n" + wire[:first])
                incoming = await host.begun()
                # A batch counts when it is there; bounded by the test's own timeout.
                while incoming.channel.offset < first - BATCH_BYTES:
                    await asyncio.sleep(0)
                with filled(place):
                    lives = not await asyncio.to_thread(_rest, sock, wire[first:])
                    await host.ended()
            assert not (lives and host.store.unpaused)
            assert lives or host.store.unpaused or host.store.partials()
            sent = await asyncio.to_thread(_give, host.address, disk.OTHER)
            assert sent == READY_OK


def _rest(sock: socket.socket, data: bytes) -> bool:
    """Send the rest as a sender does that looks at nothing; say whether all of it went."""
    try:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    read_all(sock)
    return True


def _give(address: tuple[str, int], wire: bytes) -> bytes:
    with socket.create_connection(address, timeout=120) as sock:
        sock.sendall(b"receive\n")
        answer = sock.recv(80)
        sock.sendall(wire)
        sock.shutdown(socket.SHUT_WR)
        return answer + read_all(sock)


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_guest_stays_where_its_file_is_not_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store = StoreHypervisor(Paths(tmp_path / "root"))
    with store.restore(guest()) as session:
        send_guest(session, span(0, 32))
        domain = session.complete()

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, broken)
        with pytest.raises(HypervisorError, match=r"Unable to write file .*: Input/output error"):
            save_file(store, domain, tmp_path / "web01.sav", checkpoint=False, cancel=Cancel())
    assert [found.name for found in store.domains()] == ["web01"]
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    save_file(store, domain, tmp_path / "web01.sav", checkpoint=False, cancel=Cancel())
    assert store.domains() == []
    store.close()
