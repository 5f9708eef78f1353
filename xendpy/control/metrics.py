"""Metrics for Prometheus: what was migrated, how long it took, what needs an operator.

Answered by the daemon's own loop, from a registry of their own: no thread, no global. Numbers
that stand somewhere already (what is in progress, what is in doubt, when certificates expire) are
read when somebody asks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from xendpy.control.migrations import Migration, Way
from xendpy.errors import XendError
from xendpy.migration.progress import MigrationState
from xendpy.relocation.audit import Refusal
from xendpy.relocation.listen import listen_tcp
from xendpy.relocation.pki import read

DURATION_BUCKETS_S = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
DOWNTIME_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
MAX_CONNECTIONS = 16
REQUEST_DEADLINE_S = 5.0
MAX_REQUEST = 8192

log = logging.getLogger(__name__)

Read = Callable[[], Sequence[Migration]]


class Metrics:
    """The numbers. Used in the event loop's thread; `refused` from any."""

    def __init__(
        self, *, running: Read, in_doubt: Callable[[], int], certificates: Callable[[], list[Path]]
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Now(running, in_doubt, certificates))
        self._ended = Counter(
            "xendpy_migrations",
            "Migrations that ended, by direction and result.",
            ("direction", "result"),
            registry=self.registry,
        )
        self._bytes = Counter(
            "xendpy_migration_bytes",
            "Bytes of guests that crossed the network.",
            ("direction",),
            registry=self.registry,
        )
        self._durations = Histogram(
            "xendpy_migration_duration_seconds",
            "From the first contact to the end.",
            ("direction", "result"),
            buckets=DURATION_BUCKETS_S,
            registry=self.registry,
        )
        self._downtimes = Histogram(
            "xendpy_migration_downtime_seconds",
            "How long no vcpu ran, as far as this host knows.",
            ("direction",),
            buckets=DOWNTIME_BUCKETS_S,
            registry=self.registry,
        )
        self._refused = Counter(
            "xendpy_peers_refused",
            "Peers that were sent away, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        # A series that appears with its first event has no increase to alert on.
        for way in Way:
            self._bytes.labels(way)
            self._downtimes.labels(way)
            for state in MigrationState:
                if state.final:
                    self._ended.labels(way, state)
                    self._durations.labels(way, state)
        for reason in Refusal:
            self._refused.labels(reason)

    def ended(self, migration: Migration) -> None:
        """Count a migration that is over."""
        way, progress = migration.way, migration.progress
        self._ended.labels(way, progress.state).inc()
        self._bytes.labels(way).inc(progress.bytes_done)
        elapsed_s = progress.elapsed_s or max(time.time() - migration.started_s, 0.0)
        self._durations.labels(way, progress.state).observe(elapsed_s)
        if progress.state is not MigrationState.DONE or progress.downtime is None:
            return
        if not progress.downtime.at_least:
            self._downtimes.labels(way).observe(progress.downtime.total_s)

    def refused(self, reason: Refusal) -> None:
        """Count a peer that was sent away."""
        self._refused.labels(reason).inc()

    def exposition(self) -> bytes:
        """Return everything, in Prometheus's text format."""
        return generate_latest(self.registry)


class _Now(Collector):
    # What is so at the moment of asking.

    def __init__(
        self, running: Read, in_doubt: Callable[[], int], certificates: Callable[[], list[Path]]
    ) -> None:
        self._running = running
        self._in_doubt = in_doubt
        self._certificates = certificates

    def collect(self) -> Iterator[Metric]:
        ways = [migration.way for migration in self._running()]
        under_way = GaugeMetricFamily(
            "xendpy_migrations_in_progress", "Migrations under way.", labels=("direction",)
        )
        for way in Way:
            under_way.add_metric((way,), ways.count(way))
        yield under_way
        yield GaugeMetricFamily(
            "xendpy_migrations_in_doubt",
            "Guests that another host may own, until it answers or an operator settles it.",
            value=self._in_doubt(),
        )
        yield self._expiry()

    def _expiry(self) -> Metric:
        expiry = GaugeMetricFamily(
            "xendpy_certificate_expiry_timestamp_seconds",
            "When a certificate of the TLS relocation port ends, in seconds since the epoch.",
            labels=("file",),
        )
        for path in self._certificates():
            try:
                expiry.add_metric((str(path),), read(path).not_after.timestamp())
            except XendError as error:
                log.debug("no expiry: %s", error)
        return expiry


class MetricsServer:
    """GET /metrics over HTTP; entering listens, leaving closes. An empty address = not at all."""

    def __init__(self, address: str, metrics: Metrics) -> None:
        self._address = address
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self._connections = 0

    @property
    def port(self) -> int:
        """The port that is listened on; 0 without one."""
        return int(self._server.sockets[0].getsockname()[1]) if self._server else 0

    async def __aenter__(self) -> MetricsServer:
        """Listen.

        Raises:
            RelocationError: the port is taken, or the address not ours.
        """
        if self._address:
            address, _, port = self._address.rpartition(":")
            sock = listen_tcp(address, int(port))
            self._server = await asyncio.start_server(self._serve, sock=sock, limit=MAX_REQUEST)
            log.info("metrics on %s:%d", address, self.port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MAX_CONNECTIONS:
                async with asyncio.timeout(REQUEST_DEADLINE_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            log.debug("a request for metrics came to nothing")
        finally:
            self._connections -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, path, *_ = [*head.split(b"\r\n", 1)[0].split(b" "), b"", b""]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"", "text/plain")
        if path.partition(b"?")[0] not in (b"/metrics", b"/"):
            return _response("404 Not Found", b"", "text/plain")
        body = self._metrics.exposition()
        whole = _response("200 OK", body, CONTENT_TYPE_LATEST)
        return whole if method == b"GET" else whole[: -len(body)]


def _response(status: str, body: bytes, content_type: str) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
