"""Relocations that fail: what the peer is told, what its guest does, what is kept of it."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from pathlib import Path

import pytest

from tests.peers.relocating import pv_guest, sent
from tests.peers.relocation_host import receiving
from tests.peers.xend import RELEASES
from tests.streams import config, entries, envelope, hvm_image, pv_image, vcpu_info
from xendpy.migration.progress import MigrationState
from xendpy.migration.reception import ReceiveLimits
from xendpy.relocation.channel import unacknowledged

LARGE_PAGES = 4096  # 16 MiB: more than socket buffers hold


def _wait_sent(sock: socket.socket) -> None:
    tick = threading.Event()
    while unacknowledged(sock):
        tick.wait(0.002)


@pytest.mark.parametrize("release", ["3.4", "4.0", "4.4"])
async def test_refused_sender_keeps_its_guest_and_shows_the_text(
    tmp_path: Path, release: str
) -> None:
    head = envelope(config(memory=64))
    wire = head + random.Random(1).randbytes(LARGE_PAGES * 4096)
    limits = ReceiveLimits(max_guest_bytes=32 << 20)
    async with receiving(tmp_path, limits=limits) as host:
        report = await sent(host, wire, release)
        incoming = await host.ended()
        assert not host.store.domains()
    assert incoming.channel.offset == len(head)  # not one byte of the image was read
    assert not report.succeeded
    assert report.guest_lives
    if RELEASES[release].reads_error:
        assert report.shown == (
            "web1 needs 64 MiB, at most 32 MiB are taken (xendpy-max-guest-memory)"
            " (from 127.0.0.1)"
        )


async def test_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    other = "11111111-94d1-0c5b-2d57-3b1f0a6c9e10"
    wire = envelope(config(uuid=other)) + random.Random(1).randbytes(LARGE_PAGES * 4096)
    async with receiving(tmp_path) as host:
        assert (await sent(host, pv_guest())).succeeded
        await host.ended()
        report = await sent(host, wire)
        await host.ended(2)
        assert len(host.store.domains()) == 1
    assert report.guest_lives
    assert "web1" in report.shown


async def test_bad_stream_is_told_in_the_middle(tmp_path: Path) -> None:
    good = pv_guest()
    wire = good[:-60000] + struct.pack("<i", 5000) + random.Random(1).randbytes(16 << 20)
    image = pv_image([entries(range(64))]).wire
    wire = envelope(config()) + image[: len(image) // 2 // 4096 * 4096] + wire
    async with receiving(tmp_path) as host:
        report = await sent(host, wire)
        incoming = await host.ended()
        assert not host.store.domains()
        assert not host.store.partials()
    assert report.guest_lives
    assert report.shown.endswith("(from 127.0.0.1)")
    assert incoming.progress.state is MigrationState.FAILED


async def test_cut_before_the_end_of_the_first_round_leaves_nothing(tmp_path: Path) -> None:
    wire = pv_guest()
    async with receiving(tmp_path) as host:
        for number, cut in enumerate((len(envelope(config())) + 4, 40000, 64 * 4096), 1):
            await sent(host, wire, cut=cut)
            await host.ended(number)
            assert not host.store.domains()
            assert not host.store.partials()


async def test_cut_after_the_first_round_is_kept_in_part(tmp_path: Path) -> None:
    wire = pv_guest()
    for cut in (len(wire) - 1, len(wire) - 5000, len(wire) - 12000):
        async with receiving(tmp_path / str(cut)) as host:
            await sent(host, wire, cut=cut)
            incoming = await host.ended()
            assert not host.store.domains()
            assert len(host.store.partials()) == 1
            assert incoming.progress.state is MigrationState.FAILED


async def test_hvm_guest_without_its_device_model_is_kept_in_part(tmp_path: Path) -> None:
    for number, record in enumerate((b"", b"QemuDeviceModelRecord", b"QemuDeviceModelRecordXX")):
        wire = envelope(config(hvm=True)) + hvm_image(device_model=record).wire
        async with receiving(tmp_path / str(number)) as host:
            await sent(host, wire)
            await host.ended()
            assert not host.store.domains()
            assert len(host.store.partials()) == 1


async def test_failure_behind_the_mark_of_the_end_reads_on_and_keeps(tmp_path: Path) -> None:
    image = pv_image()
    odd = struct.pack("<i", -99) + b"what nobody knows" * 100
    at = image.ending + len(vcpu_info(0, (0,)))
    wire = envelope(config()) + image.wire[:at] + odd
    async with receiving(tmp_path) as host:
        report = await sent(host, wire)
        incoming = await host.ended()
        (partial,) = host.store.partials()
        assert not host.store.domains()
    assert not report.guest_lives
    assert incoming.channel.offset == len(wire)
    (rest,) = tmp_path.rglob("rest*")
    assert rest.read_bytes() == odd
    assert partial is not None


async def test_reset_is_no_end_of_an_hvm_stream(tmp_path: Path) -> None:
    wire = envelope(config(hvm=True)) + hvm_image().wire
    async with receiving(tmp_path) as host:

        def peer() -> None:
            with host.connect() as sock:
                sock.sendall(b"receive\n")
                sock.recv(80)
                sock.sendall(wire)
                _wait_sent(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        await asyncio.to_thread(peer)
        await host.ended()
        assert not host.store.domains()
