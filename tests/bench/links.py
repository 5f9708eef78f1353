"""Rows about what features between xendpy hosts buy on links of different speed.

The kernel paces the sending socket at the link's rate (SO_MAX_PACING_RATE); a link has no delay
here. The guest is half zeros, a quarter text, a quarter random: elision alone can halve the bytes.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

from tests.bench.harness import MIB, NO_BAR, Bench
from xendpy.guest.pages import MAX_BATCH, PAGE_SIZE
from xendpy.relocation.channel import Channel
from xendpy.relocation.frames import IMAGE_BYTES, FrameType, send_frame, send_image
from xendpy.relocation.image_source import ImageSource
from xendpy.relocation.packing import Packer

SO_MAX_PACING_RATE = 47  # uapi/asm-generic/socket.h
LINKS = (("loopback", 0, 1024), ("1 Gbit/s", 125_000_000, 128), ("100 Mbit/s", 12_500_000, 16))
BATCH_BYTES = MAX_BATCH * PAGE_SIZE
TIMEOUT_S = 120.0
PAIRS = 3
FEATURES = (("zero", Packer), ("zero and zstd", partial(Packer, compress=True)))


def run(bench: Bench) -> None:
    """Measure every feature on every link."""
    batch = _batch()
    for link, bytes_per_s, wanted in LINKS:
        mib = bench.mib(wanted)
        for feature, packer in FEATURES:
            work = f"{mib} MiB, {link}, {feature}"
            if "zstd" in feature and find_spec("zstandard") is None:
                bench.skip(work, "neither", NO_BAR, "there is no package zstandard")
                continue
            bench.compare(
                work,
                "neither",
                NO_BAR,
                partial(_send, batch, mib, bytes_per_s, packer),
                partial(_send, batch, mib, bytes_per_s, None),
                pairs=min(PAIRS, bench.pairs),
            )


def _batch() -> memoryview:
    """Return a batch's pages in runs of eight: zeros, text, zeros, random; none comes twice."""
    size, pieces = 8 * PAGE_SIZE, list[bytes]()
    for first in range(0, MAX_BATCH // 32):
        lines = (b"%08x: a line of a log, %d\n" % (n * 7919, n) for n in range(size // 16))
        pieces += [bytes(size), b"".join(lines)[first:][:size], bytes(size), os.urandom(size)]
    return memoryview(bytearray(b"".join(pieces)))


def _send(
    batch: memoryview, mib: int, bytes_per_s: int, make: Callable[[], Packer] | None
) -> float:
    """Send an image of `mib` MiB of such batches; return the seconds."""
    packer = make() if make is not None else None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        out = socket.create_connection(listener.getsockname())
        if bytes_per_s:
            out.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, bytes_per_s)
        taken, _ = listener.accept()
    start = time.perf_counter()
    with Channel(out, stall_timeout_s=TIMEOUT_S) as sender:
        receiver = threading.Thread(target=_receive, args=(taken, mib))
        receiver.start()
        count = 0
        for _ in range(mib * MIB // BATCH_BYTES):
            count += send_image(sender, [batch], packer)
        send_frame(sender, FrameType.IMAGE_END, IMAGE_BYTES.pack(count))
        receiver.join()
    return time.perf_counter() - start


def _receive(sock: socket.socket, mib: int) -> None:
    views: Sequence[memoryview] = [memoryview(bytearray(BATCH_BYTES))]
    with Channel(sock, stall_timeout_s=TIMEOUT_S) as channel:
        source = ImageSource(channel)
        for _ in range(mib * MIB // BATCH_BYTES):
            source.recv_into(views)
        source.finish()
