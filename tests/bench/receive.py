"""Rows about taking a guest in, over loopback TCP, from a sender process to this one."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.bench.harness import MIB, NO_BAR, Bench, Row, at_least, at_most, timed
from tests.bench.sender import SPARSE
from tests.certificates import Authority
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.guest.memory import GuestMemory, zero_pages
from xendpy.guest.pages import PAGE_SIZE, PageBatch, runs
from xendpy.guest.staging import Staging
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.receive import NoGuest, Sink, drive
from xendpy.paths import Paths
from xendpy.relocation.channel import Channel
from xendpy.stream.records import Pages, Record
from xendpy.stream.xend import decode_body, read_envelope

PIECE = 4 << 20
TIMEOUT_S = 120.0
GUESTS = 32
SINK = "bare recv_into"


def run(bench: Bench) -> None:
    """Measure all rows."""
    with touched(bench.mib(1024)) as memory:
        _touched_rows(bench, memory)
        _fresh_row(bench, memory)
        _tls_row(bench, memory)
        _many_rows(bench, memory)
    _durable_row(bench)
    _sparse_rows(bench)


class TouchedMemory:
    """A sink for `drive`: frames of a map whose pages all exist."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        firsts, counts = runs(batch.with_data())
        pairs = zip((firsts * PAGE_SIZE).tolist(), (counts * PAGE_SIZE).tolist(), strict=True)
        return [self._memory[start : start + length] for start, length in pairs]

    def apply(self, record: Record) -> None:
        pass


class FreshMemory:
    """A sink for `drive`: guest memory as the store writes it, in a memfd."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._staging = Staging()
        self._views: Sequence[memoryview] = ()

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        self._views = self._staging.view(batch)
        return self._views

    def apply(self, record: Record) -> None:
        if isinstance(record, Pages):
            self._memory.store(record.batch.with_data(), self._views[0])


@contextmanager
def incoming(mib: int, kind: str, *more: str) -> Iterator[socket.socket]:
    """A connection from a sender that waits for a byte to begin."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        argv = [sys.executable, "-m", "tests.bench.sender", str(port), str(mib), kind, *more]
        with subprocess.Popen(argv) as sender:
            listener.settimeout(TIMEOUT_S)
            sock, _ = listener.accept()
            with sock:
                yield sock
            if sender.wait(TIMEOUT_S):
                raise RuntimeError("the sender failed")


@contextmanager
def touched(mib: int) -> Iterator[memoryview]:
    """A memfd of `mib` MiB, mapped, with every page present."""
    fd = os.memfd_create("bench")
    os.ftruncate(fd, mib << 20)
    with mmap.mmap(fd, mib << 20) as mapped:
        touch(mapped)
        view = memoryview(mapped)
        try:
            yield view
        finally:
            view.release()
            os.close(fd)


def touch(mapped: mmap.mmap) -> None:
    """Write a byte of every page."""
    pages: NDArray[np.uint8] = np.frombuffer(mapped, np.uint8)
    pages[::PAGE_SIZE] = 1


def sink(memory: memoryview) -> float:
    """Receive as many raw bytes with nothing but recv_into; return the seconds."""
    with incoming(len(memory) // MIB, "raw") as sock:
        sock.sendall(b"g")
        return timed(lambda: _fill(sock, memory))


def _fill(sock: socket.socket, memory: memoryview) -> None:
    done = 0
    while done < len(memory):
        done += sock.recv_into(memory[done : done + PIECE])


def decoded(sock: socket.socket, guest: Sink) -> float:
    """Decode a stream into `guest`; return the seconds."""
    with Channel(sock, stall_timeout_s=TIMEOUT_S) as channel:
        channel.send([b"g"])
        start = time.perf_counter()
        drive(read_envelope(), channel, NoGuest())
        drive(decode_body(GuestType.PV), channel, guest)
        return time.perf_counter() - start


def into_touched(memory: memoryview, kind: str) -> float:
    with incoming(len(memory) // MIB, kind) as sock:
        return decoded(sock, TouchedMemory(memory))


def _touched_rows(bench: Bench, memory: memoryview) -> None:
    mib = len(memory) // MIB
    for kind, bar in (("contiguous", 0.9), ("scattered", 0.6)):
        bench.compare(
            f"receive {mib} MiB, {kind}, touched memory",
            SINK,
            at_least(bar),
            partial(into_touched, memory, kind),
            partial(sink, memory),
        )


def _fresh_row(bench: Bench, memory: memoryview) -> None:
    mib = len(memory) // MIB

    def ours() -> float:
        fresh = GuestMemory.anonymous("bench")
        try:
            with incoming(mib, "contiguous") as sock:
                return decoded(sock, FreshMemory(fresh))
        finally:
            fresh.close()

    def theirs() -> float:
        return max(sink(memory), first_touch(mib))

    bench.compare(
        f"receive {mib} MiB, fresh memory",
        "slower of recv_into, first touch",
        at_most(1.15),
        ours,
        theirs,
    )


def first_touch(mib: int) -> float:
    """Write a byte of every page of a fresh memfd; return the seconds."""
    fd = os.memfd_create("bench")
    try:
        os.ftruncate(fd, mib << 20)
        with mmap.mmap(fd, mib << 20) as mapped:
            return timed(lambda: touch(mapped))
    finally:
        os.close(fd)


def _tls_row(bench: Bench, memory: memoryview) -> None:
    part = memory[: bench.mib(256) * MIB]
    authority = Authority(bench.directory / "pki")
    authority.issue("here", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key = authority.pki.key_file("here")
    context.load_cert_chain(authority.pki.certificate_file("here"), key)

    def over_tls(kind: str, receive: Callable[[ssl.SSLSocket], float]) -> float:
        with incoming(len(part) // MIB, kind, "tls") as sock:
            wrapped = context.wrap_socket(sock, server_side=True)
            with wrapped:
                return receive(wrapped)

    def bare(sock: ssl.SSLSocket) -> float:
        sock.sendall(b"g")
        return timed(lambda: _fill(sock, part))

    bench.compare(
        f"receive {len(part) // MIB} MiB over TLS",
        "bare SSLSocket.recv_into",
        at_least(0.85),
        lambda: over_tls("contiguous", lambda sock: decoded(sock, TouchedMemory(part))),
        lambda: over_tls("raw", bare),
    )


def _many_rows(bench: Bench, memory: memoryview) -> None:
    part = len(memory) // GUESTS // PIECE * PIECE or PIECE
    parts = [memory[start : start + part] for start in range(0, part * GUESTS, part)][:GUESTS]
    parts = [piece for piece in parts if len(piece) == part]
    whole = memory[: part * len(parts)]
    work = f"{len(parts)} guests of {part // MIB} MiB at once"
    if not bench.wants(work):
        return
    slowest = Row(work=f"{work}, the slowest", against="their mean", bar=at_least(0.5))

    def ours() -> float:
        each = all_at_once(parts)
        slowest.ours.append(max(each))
        slowest.theirs.append(sum(each) / len(each))
        return max(each)

    bench.compare(
        work, "one guest", at_least(0.85), ours, partial(into_touched, whole, "contiguous")
    )
    bench.add(slowest)


def all_at_once(parts: Sequence[memoryview]) -> list[float]:
    """Receive a guest into each part; return the seconds of each from the common start."""
    with ExitStack() as stack:
        mib = len(parts[0]) // MIB
        socks = [stack.enter_context(incoming(mib, "contiguous")) for _ in parts]
        start = threading.Barrier(len(parts))

        def receive(sock: socket.socket, part: memoryview) -> float:
            start.wait()
            return decoded(sock, TouchedMemory(part))

        with ThreadPoolExecutor(len(parts)) as workers:
            return list(workers.map(receive, socks, parts))


def into_store(mib: int, kind: str, root: Path) -> float:
    """Take a guest into a fresh store, until it is on disk; return the seconds."""
    hypervisor = StoreHypervisor(Paths(root))
    try:
        with incoming(mib, kind) as sock, Channel(sock, stall_timeout_s=TIMEOUT_S) as channel:
            channel.send([b"g"])
            start = time.perf_counter()
            envelope = drive(read_envelope(), channel, NoGuest())
            with hypervisor.restore(DomainConfig.parse(envelope.config_bytes)) as session:
                drive(decode_body(GuestType.PV), channel, session)
                session.complete()
            return time.perf_counter() - start
    finally:
        hypervisor.close()


def _durable_row(bench: Bench) -> None:
    root, copy = bench.directory / "store", bench.directory / "copy"
    source = bench.memory_directory / "random"

    def ours(kind: str, mib: int) -> float:
        try:
            return into_store(mib, kind, root)
        finally:
            shutil.rmtree(root)

    def theirs() -> float:
        argv = ["dd", f"if={source}", f"of={copy}", "bs=4M", "conv=fsync", "status=none"]
        try:
            return timed(lambda: subprocess.run(argv, check=True))
        finally:
            copy.unlink()

    # A guest in pieces may keep a disk busy for a minute, and no bar hangs on it: a small one.
    for kind, wanted, bar in (("contiguous", 512, at_least(0.85)), ("scattered", 256, NO_BAR)):
        mib, pairs = bench.mib(wanted), None if bar is not NO_BAR else 3
        work = f"receive {mib} MiB, {kind}, onto disk"
        if bench.wants(work):
            with source.open("wb") as file:
                for _ in range(mib // 4):
                    file.write(os.urandom(PIECE))
            against = "dd conv=fsync"
            bench.compare(work, against, bar, partial(ours, kind, mib), theirs, pairs=pairs)
            source.unlink()


def _sparse_rows(bench: Bench) -> None:
    mib = bench.mib(16384) // (4 * SPARSE) * (4 * SPARSE) or 4 * SPARSE
    work = f"{mib} MiB guest, 15 of 16 zero"
    if bench.wants(f"{work}: disk"):
        root = bench.memory_directory / "sparse"
        with PeakAnonymous() as peak:
            into_store(mib, "sparse", root)
        disk = sum(file.stat().st_blocks for file in root.rglob("*")) * 512 / MIB
        shutil.rmtree(root)
        against, bar = "its non-zero pages", at_most(1.1)
        held = float(mib // SPARSE)
        bench.add(
            Row(
                work=f"{work}: disk",
                against=against,
                bar=bar,
                unit="MiB",
                ours=[disk],
                theirs=[held],
            )
        )
        bench.add(
            Row(
                work=f"{work}: disk and memory",
                against=against,
                bar=bar,
                unit="MiB",
                ours=[disk + peak.grown_mib],
                theirs=[held],
            )
        )
    data = memoryview(bytearray(PIECE))
    words = np.frombuffer(data, np.uint64).reshape(-1, PAGE_SIZE // 8)
    bench.compare(
        "scan of 4 MiB of zeros, 100 times",
        "numpy any() per page",
        at_least(0.8),
        lambda: timed(lambda: [zero_pages(data) for _ in range(100)]),
        lambda: timed(lambda: [~words.any(axis=1) for _ in range(100)]),
    )


class PeakAnonymous:
    """The peak of this process's anonymous memory, sampled every 5 ms while the block runs."""

    def __enter__(self) -> PeakAnonymous:
        self._before = self.kib = _anonymous_kib()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def grown_mib(self) -> float:
        return (self.kib - self._before) / 1024

    def _sample(self) -> None:
        while not self._over.wait(0.005):
            self.kib = max(self.kib, _anonymous_kib())


def _anonymous_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon in /proc/self/status")
