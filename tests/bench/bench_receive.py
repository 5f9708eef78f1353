"""Measure receiving into guest memory and into the store against a bare `recv_into` sink.

    make bench                                        # or, with other sizes:
    .venv/bin/python -m tests.bench.bench_receive --mib 1024 --rounds 5

Everything goes over loopback TCP, from a sender process to this one. A round measures each
receiver once, so that all of them meet the same weather; a ratio is taken within a round.

    sink     recv_into 4 MiB pieces of a touched memfd as large as the guest
    memory   the decoder into such a memfd: what the format costs
    store    the decoder into the embedded store, up to its last record: and what the disk costs
    durable  the same, and `complete`: everything is on disk

`anonymous` is the memory of this process that no file backs, at its peak: what receiving costs
beyond the guest itself.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.guest.pages import PAGE_SIZE, PageBatch, runs
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.receive import NoGuest, drive
from xendpy.paths import Paths
from xendpy.relocation.channel import Channel
from xendpy.stream.records import Record
from xendpy.stream.xend import decode_body, read_envelope

PIECE = 4 << 20
TIMEOUT_S = 60.0


class TouchedMemory:
    """A sink for `drive`: a guest's frames in a memfd whose pages all exist."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        firsts, counts = runs(batch.with_data())
        pairs = zip((firsts * PAGE_SIZE).tolist(), (counts * PAGE_SIZE).tolist(), strict=True)
        return [self._memory[start : start + length] for start, length in pairs]

    def apply(self, record: Record) -> None:
        pass


@dataclass
class Results:
    """Seconds of every run, by receiver."""

    mib: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)

    def lines(self) -> Iterator[str]:
        """Yield a line per receiver: GiB/s, and the ratio to the sink of the same round."""
        sink = self.seconds["sink"]
        yield f"{'':<22}{'GiB/s  min   median   max':>27}{'ratio  min   median   max':>31}"
        for name, seconds in self.seconds.items():
            rates = [self.mib / 1024 / value for value in seconds]
            ratios = [bare / value for bare, value in zip(sink, seconds, strict=True)]
            yield f"{name:<22}{_three(rates):>27}{_three(ratios):>31}"


def _three(values: Sequence[float]) -> str:
    return f"{min(values):.2f}    {statistics.median(values):.2f}    {max(values):.2f}"


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


@contextmanager
def incoming(mib: int, kind: str) -> Iterator[socket.socket]:
    """A connection from a sender that has been told to go."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        argv = [sys.executable, "-m", "tests.bench.sender", str(port), str(mib), kind]
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
        view = memoryview(mapped)
        for start in range(0, mib << 20, PAGE_SIZE):
            view[start] = 1
        try:
            yield view
        finally:
            view.release()
            os.close(fd)


def into_sink(mib: int, memory: memoryview) -> float:
    """Receive `mib` MiB with nothing but recv_into; return the seconds."""
    with incoming(mib, "raw") as sock:
        start = time.perf_counter()
        sock.sendall(b"g")
        done, total = 0, mib << 20
        while done < total:
            done += sock.recv_into(memory[done : done + PIECE])
        return time.perf_counter() - start


def into_memory(mib: int, kind: str, memory: memoryview) -> float:
    """Decode a stream into touched memory; return the seconds."""
    with incoming(mib, kind) as sock, Channel(sock, stall_timeout_s=TIMEOUT_S) as channel:
        start = time.perf_counter()
        sock.sendall(b"g")
        drive(read_envelope(), channel, NoGuest())
        drive(decode_body(GuestType.PV), channel, TouchedMemory(memory))
        return time.perf_counter() - start


def into_store(mib: int, kind: str, root: Path) -> tuple[float, float]:
    """Decode a stream into a fresh store; return the seconds to its last record, and on disk."""
    hypervisor = StoreHypervisor(Paths(root))
    try:
        with incoming(mib, kind) as sock, Channel(sock, stall_timeout_s=TIMEOUT_S) as channel:
            start = time.perf_counter()
            sock.sendall(b"g")
            envelope = drive(read_envelope(), channel, NoGuest())
            with hypervisor.restore(DomainConfig.parse(envelope.config_bytes)) as session:
                drive(decode_body(GuestType.PV), channel, session)
                received = time.perf_counter() - start
                domain = session.complete()
            durable = time.perf_counter() - start
        hypervisor.destroy(domain)
        return received, durable
    finally:
        hypervisor.close()


def measure(mib: int, rounds: int, directory: Path) -> tuple[Results, PeakAnonymous]:
    """Run every receiver `rounds` times, in turn, after a round that does not count."""
    results = Results(mib)
    with touched(mib) as memory:
        receivers: dict[str, Callable[[], float]] = {
            "sink": lambda: into_sink(mib, memory),
            "memory contiguous": lambda: into_memory(mib, "contiguous", memory),
            "memory scattered": lambda: into_memory(mib, "scattered", memory),
        }
        for number in range(-1, rounds):
            for name, receive in receivers.items():
                seconds = receive()
                if number >= 0:
                    results.add(name, seconds)
            for kind in ("contiguous", "scattered"):
                received, durable = into_store(mib, kind, directory / f"{number}-{kind}")
                if number >= 0:
                    results.add(f"store {kind}", received)
                    results.add(f"durable {kind}", durable)
        with PeakAnonymous() as peak:
            into_store(mib, "scattered", directory / "peak")
    return results, peak


def main() -> None:
    """Measure and print; no time is asserted."""
    parser = argparse.ArgumentParser(description="Measure receiving.")
    parser.add_argument("--mib", type=int, default=256, help="size of the guest, a multiple of 4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where the store lies (default: temporary)")
    args = parser.parse_args()
    if args.mib < 4 or args.mib % 4:
        parser.error("--mib must be a multiple of 4")
    print(
        f"receive: {args.mib} MiB in batches of 4 MiB, {args.rounds} rounds, loopback;"
        f" Python {platform.python_version()}, {os.cpu_count()} CPUs,"
        f" load {os.getloadavg()[0]:.1f} before"
    )
    with tempfile.TemporaryDirectory(prefix="xendpy-bench-", dir=args.dir) as directory:
        results, peak = measure(args.mib, args.rounds, Path(directory))
    print("\n".join(results.lines()))
    print(f"anonymous memory grown while a scattered guest came: {peak.grown_mib:.1f} MiB")


if __name__ == "__main__":
    main()
