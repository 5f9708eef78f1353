"""What Prometheus is told, and how it asks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from xendpy.control.metrics import Metrics, MetricsServer
from xendpy.control.migrations import Migration, Way
from xendpy.migration.progress import DowntimeReport, MigrationProgress, MigrationState
from xendpy.relocation.audit import Refusal
from xendpy.relocation.pki import Pki

DONE = MigrationProgress(
    migration_id="1",
    peer="b",
    state=MigrationState.DONE,
    bytes_done=1 << 30,
    elapsed_s=4.0,
    downtime=DowntimeReport(last_iteration_s=0.02, resume_s=0.01),
)


def migration(progress: MigrationProgress, way: Way = Way.OUT) -> Migration:
    return Migration(way=way, look=lambda: progress, abort=lambda _: None, last=progress)


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def make(certificates: list[Path] | None = None, doubt: int = 0) -> Metrics:
    running = [migration(DONE, Way.IN)]
    return Metrics(
        running=lambda: running, in_doubt=lambda: doubt, certificates=lambda: certificates or []
    )


def test_ended_migrations_are_counted_by_direction_and_result() -> None:
    metrics = make()
    metrics.ended(migration(DONE))
    metrics.ended(migration(replace(DONE, state=MigrationState.FAILED, downtime=None), Way.IN))
    assert sample(metrics, "xendpy_migrations_total", direction="out", result="done") == 1
    assert sample(metrics, "xendpy_migrations_total", direction="in", result="failed") == 1
    assert sample(metrics, "xendpy_migrations_total", direction="in", result="done") == 0
    assert sample(metrics, "xendpy_migration_bytes_total", direction="out") == 1 << 30
    name = "xendpy_migration_duration_seconds_sum"
    assert sample(metrics, name, direction="out", result="done") == 4.0
    name = "xendpy_migration_downtime_seconds_bucket"
    assert sample(metrics, name, direction="out", le="0.03") == 1
    assert sample(metrics, name, direction="out", le="0.01") == 0


def test_what_is_so_at_this_moment_is_read_when_asked_for() -> None:
    metrics = make(doubt=2)
    assert sample(metrics, "xendpy_migrations_in_progress", direction="in") == 1
    assert sample(metrics, "xendpy_migrations_in_progress", direction="out") == 0
    assert sample(metrics, "xendpy_migrations_in_doubt") == 2


def test_refusals_begin_at_zero_and_are_counted_by_reason() -> None:
    metrics = make()
    metrics.refused(Refusal.TLS)
    counts = {kind: sample(metrics, "xendpy_peers_refused_total", reason=kind) for kind in Refusal}
    assert counts == {kind: float(kind is Refusal.TLS) for kind in Refusal}


def test_expiry_is_that_of_the_certificate_and_missing_files_are_no_fault(tmp_path: Path) -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    made = Pki(tmp_path / "pki").init("a CA", now)
    metrics = make([made.path, tmp_path / "missing.pem"])
    name = "xendpy_certificate_expiry_timestamp_seconds"
    assert sample(metrics, name, file=str(made.path)) == made.not_after.timestamp()
    assert sample(metrics, name, file=str(tmp_path / "missing.pem")) is None


async def ask(port: int, request: bytes) -> tuple[bytes, bytes]:
    async with asyncio.timeout(40):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return head, body


async def test_prometheus_gets_its_text() -> None:
    async with MetricsServer("127.0.0.1:0", make()) as server:
        head, body = await ask(server.port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=")
        names = {family.name for family in text_string_to_metric_families(body.decode())}
        assert {"xendpy_migrations", "xendpy_peers_refused"} <= names
        head, body = await ask(server.port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and not body
        for request, status in (
            (b"GET /secret HTTP/1.1\r\n\r\n", b"404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
            (b"\r\n\r\n", b"405"),
        ):
            assert (await ask(server.port, request))[0].split(b" ")[1] == status


async def test_an_endless_request_is_closed() -> None:
    async with MetricsServer("127.0.0.1:0", make()) as server:
        head, _ = await ask(server.port, b"GET /" + b"a" * 100_000)
        assert head == b""


async def test_without_an_address_nothing_listens() -> None:
    async with MetricsServer("", make()) as server:
        assert server.port == 0
