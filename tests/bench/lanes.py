"""Rows about sending an image over several connections instead of one.

All in this process: nothing holds its lock while bytes move or are enciphered. The kernel paces
each connection by itself where a row says so, as a line of a bond does.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from tests.bench.harness import MIB, NO_BAR, Bench
from tests.bench.links import BATCH_BYTES, SO_MAX_PACING_RATE, TIMEOUT_S
from tests.certificates import Authority
from xendpy.relocation.channel import Channel
from xendpy.relocation.frames import IMAGE_BYTES, FrameType, send_frame, send_image
from xendpy.relocation.image_source import ImageSource
from xendpy.relocation.stripes import Lane, Stripes

PAIRS = 3
ROWS = (  # connections, MiB, TLS, bytes/s of each connection (0 = any)
    (2, 512, False, 0),
    (4, 512, False, 0),
    (2, 256, True, 0),
    (4, 256, True, 0),
    (4, 32, False, 12_500_000),
)

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


def run(bench: Bench) -> None:
    """Measure every row against one connection of the same kind."""
    contexts = _contexts(bench)
    for count, wanted, tls, bytes_per_s in ROWS:
        mib = bench.mib(wanted)
        kind = (
            "TLS" if tls else f"{bytes_per_s * 8 // 10**6} Mbit/s each" if bytes_per_s else "TCP"
        )
        send = partial(_send, mib, contexts if tls else None, bytes_per_s)
        bench.compare(
            f"{mib} MiB, {kind}, {count} streams",
            "one stream",
            NO_BAR,
            partial(send, count),
            partial(send, 1),
            pairs=min(PAIRS, bench.pairs),
        )


def _contexts(bench: Bench) -> Contexts:
    authority = Authority(bench.directory / "lanes-pki")
    authority.issue("here", "127.0.0.1")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pki = authority.pki
    server.load_cert_chain(pki.certificate_file("here"), pki.key_file("here"))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return server, client


def _connected(contexts: Contexts | None, bytes_per_s: int) -> tuple[Channel, Channel]:
    """Return the two ends of one connection, the sending one first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        out = socket.create_connection(listener.getsockname())
        taken, _ = listener.accept()
    if bytes_per_s:
        out.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, bytes_per_s)
    if contexts is not None:
        server, client = contexts
        taken = server.wrap_socket(taken, server_side=True, do_handshake_on_connect=False)
        shaking = threading.Thread(target=taken.do_handshake)  # type: ignore[attr-defined]  # TLS
        shaking.start()
        out = client.wrap_socket(out)
        shaking.join()
    sender, receiver = (Channel(sock, stall_timeout_s=TIMEOUT_S) for sock in (out, taken))
    return sender, receiver


@contextmanager
def _wires(
    count: int, contexts: Contexts | None, bytes_per_s: int
) -> Iterator[tuple[Stripes, Stripes]]:
    with ExitStack() as stack:
        ends = [_connected(contexts, bytes_per_s) for _ in range(count)]
        made = []
        for channels in zip(*ends, strict=True):
            lanes = [Lane(channel) for channel in channels[1:]]
            for lane in lanes:
                lane.start()
            wire = Stripes(stack.enter_context(channels[0]))
            wire.widen(lanes)
            stack.callback(wire.narrow)
            made.append(wire)
        yield made[0], made[1]


def _send(mib: int, contexts: Contexts | None, bytes_per_s: int, count: int) -> float:
    """Send an image of `mib` MiB of random batches over `count` connections; the seconds."""
    batch = memoryview(bytearray(os.urandom(BATCH_BYTES)))
    batches = mib * MIB // BATCH_BYTES
    with _wires(count, contexts, bytes_per_s) as (sender, receiver):
        taking = threading.Thread(target=_receive, args=(receiver, batches))
        start = time.perf_counter()
        taking.start()
        for _ in range(batches):
            send_image(sender, [batch], None)
        send_frame(sender, FrameType.IMAGE_END, IMAGE_BYTES.pack(mib * MIB))
        taking.join()
        return time.perf_counter() - start


def _receive(wire: Stripes, batches: int) -> None:
    views: Sequence[memoryview] = [memoryview(bytearray(BATCH_BYTES))]
    source = ImageSource(wire)
    for _ in range(batches):
        source.recv_into(views)
    source.finish()
