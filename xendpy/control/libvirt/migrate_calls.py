"""Procedures of a migration: libvirt's versions 1 and 2, peer-to-peer and direct, and its job.

The client drives: PREPARE on the target says where to dial, PERFORM on the source sends, FINISH
on the target looks the guest up. The data goes over the relocation port. What a flag would change
and nothing here can is refused, never ignored: the client does not check flags itself.
"""

from __future__ import annotations

import re

from xendpy.control.events import EventKind
from xendpy.control.libvirt.guests import add_domain, find, undefine
from xendpy.control.libvirt.layouts import refuse_flags
from xendpy.control.libvirt.session import Procedure, Session
from xendpy.control.libvirt.wire import Code
from xendpy.control.libvirt.xdr import Kind, Param, Reader, Writer
from xendpy.control.libvirt.xml_config import from_xml
from xendpy.control.migrate_options import MigrateOptions
from xendpy.control.migrations import Migration, Way
from xendpy.control.migrator import MigrateRequest
from xendpy.control.new_config import new_config
from xendpy.errors import MigrationError, RpcError
from xendpy.guest.domain import DomainConfig
from xendpy.guest.origin import as_received
from xendpy.guest.pages import PAGE_SIZE
from xendpy.migration.precopy import PrecopyLimits
from xendpy.migration.preflight import Facts, check_target, failures
from xendpy.migration.progress import MigrationProgress, MigrationState
from xendpy.relocation.outgoing import Outcome

LIVE, PEER2PEER, PERSIST_DEST, UNDEFINE_SOURCE = 0x1, 0x2, 0x8, 0x10
UNSAFE, ABORT_ON_ERROR, PARALLEL = 0x200, 0x1000, 0x20000
KNOWN = LIVE | PEER2PEER | PERSIST_DEST | UNDEFINE_SOURCE | UNSAFE | ABORT_ON_ERROR | PARALLEL
_NAMES = {
    0x4: "--tunnelled", 0x20: "--suspend", 0x40: "--copy-storage-all", 0x80: "--copy-storage-inc",
    0x400: "--offline", 0x800: "--compressed", 0x2000: "--auto-converge", 0x8000: "--postcopy",
    0x10000: "--tls",
}  # fmt: skip
_URI = re.compile(
    r"(?:(?P<scheme>[a-z0-9+]+)://)?(?:\w+@)?(?P<host>[A-Za-z0-9.\-_]+)(?::(?P<port>\d+))?(?:/.*)?"
)
PARALLEL_STREAMS = 2  # libvirt's own default; how many is said in a version 3 of the protocol only
JOB_NONE, JOB_UNBOUNDED, JOB_COMPLETED = 0, 2, 3
OPERATION_MIGRATION_OUT = 5  # virDomainJobOperation
COOKIE = b"\0"  # a client of version 1 wants one; nothing is in it


def _check_flags(flags: int) -> None:
    refuse_flags(flags, KNOWN, _NAMES)


def _destination(session: Session, uri_in: str | None) -> str | None:
    """Return where the source is to dial; None where the client has said so itself.

    An address and not a name: the classic failure was a name that the source cannot resolve.
    """
    if uri_in is not None:
        return None
    settings = session.host.relocation()
    if not settings.listens:
        raise RpcError(
            Code.OPERATION_FAILED,
            "this host takes no migrations: (xend-relocation-server yes) is not set",
        )
    address = settings.address or session.local_address or session.host.host_name()
    return f"{address}:{settings.port}"


async def _prepare(session: Session, args: Reader) -> Writer:
    uri_in, flags, _name, _speed = args.opt_string(), args.u64(), args.opt_string(), args.u64()
    _check_flags(flags)
    return Writer().opaque(COOKIE).opt_string(_destination(session, uri_in))


async def _prepare2(session: Session, args: Reader) -> Writer:
    uri_in, flags, name, _speed = args.opt_string(), args.u64(), args.opt_string(), args.u64()
    _check_flags(flags)
    config = new_config(from_xml(args.string()))
    await _preflight(session, config.renamed(name) if name else config)
    return Writer().opaque(COOKIE).opt_string(_destination(session, uri_in))


async def _preflight(session: Session, config: DomainConfig) -> None:
    hypervisor = session.guests.hypervisor
    checks = await session.guests.workers.quick(
        check_target,
        config,
        Facts(),
        hypervisor,
        devices=hypervisor.name != "store",
        max_memory_mib=session.host.max_guest_memory_mib(),
    )
    bad = failures(checks)
    if bad:
        text = "; ".join(check.detail for check in bad)
        raise RpcError(Code.OPERATION_FAILED, f"preflight failed: {text}")


async def _perform(session: Session, args: Reader) -> Writer:
    domain, _cookie, uri = args.domain(), args.opaque(), args.string()
    flags, name, speed = args.u64(), args.opt_string(), args.u64()
    _check_flags(flags)
    guest = await find(session, domain)
    both = flags & PERSIST_DEST and flags & UNDEFINE_SOURCE
    managed = session.guests.managed.get(guest.uuid) is not None
    request = _request(uri, flags, name or "", change_home_server=bool(both) and managed)
    options = _options(session, guest.uuid, speed, parallel=bool(flags & PARALLEL))
    transfers = session.host.transfers
    migration_id = await transfers.start(guest.uuid, request, options)
    if await transfers.outcome(migration_id) is Outcome.IN_DOUBT:
        raise MigrationError(transfers.doubt(migration_id))
    if flags & UNDEFINE_SOURCE and managed and not both:
        await undefine(session, guest)
    return Writer()


def _request(uri: str, flags: int, name: str, *, change_home_server: bool) -> MigrateRequest:
    match = _URI.fullmatch(uri)
    scheme = match["scheme"] if match else ""
    if match is None or not (scheme or "xen").startswith("xen"):
        reason = f"cannot migrate to {uri}: expected [xenmigr://]HOST[:PORT]"
        raise RpcError(Code.INVALID_ARG, reason)
    if scheme and scheme.startswith("xen+unix"):
        raise RpcError(Code.INVALID_ARG, f"{uri} names no host")
    # In a connection's URI the port is that of libvirt, not that of the relocation server.
    port = int(match["port"] or 0) if scheme in (None, "xenmigr") else 0
    return MigrateRequest(
        destination=match["host"],
        live=bool(flags & LIVE),
        port=port,
        change_home_server=change_home_server,
        name=name,
    )


def _options(session: Session, uuid: str, speed_mib: int, *, parallel: bool) -> MigrateOptions:
    downtime_ms = session.host.downtime_ms.get(uuid, 0)
    limits = PrecopyLimits(max_downtime_s=downtime_ms / 1000) if downtime_ms else PrecopyLimits()
    speed = speed_mib or session.host.speed_mib.get(uuid, 0)
    streams = PARALLEL_STREAMS if parallel else 1
    return MigrateOptions(limits=limits, bandwidth_bytes_per_s=speed << 20, streams=streams)


async def _finish(session: Session, args: Reader) -> Writer:
    name, _cookie, _uri, flags = args.string(), args.opaque(), args.string(), args.u64()
    return await _arrived(session, name, flags)


async def _finish2(session: Session, args: Reader) -> Writer:
    name, _cookie, _uri, flags = args.string(), args.opaque(), args.string(), args.u64()
    if args.i32():
        raise RpcError(Code.OPERATION_FAILED, "the source has not sent the guest")
    return await _arrived(session, name, flags)


async def _arrived(session: Session, name: str, flags: int) -> Writer:
    guest = await session.guests.get(name)
    if flags & PERSIST_DEST and session.guests.managed.get(guest.uuid) is None:
        kept = as_received(guest.config)
        await session.guests.workers.quick(session.guests.managed.put, kept)
        session.guests.events.emit(EventKind.DEFINED, guest)
    return add_domain(Writer(), guest)


# The job


def _job_of(session: Session, uuid: str, *, completed: bool = False) -> Migration | None:
    rows = session.host.migrations.all() if completed else session.host.migrations.running()
    found = [row for row in rows if row.way is Way.OUT and row.progress.uuid == uuid]
    if completed:
        found = [row for row in found if row.progress.state is MigrationState.DONE]
    return found[-1] if found else None


def _figures(progress: MigrationProgress) -> tuple[int, int, int]:
    """Return total, processed and remaining bytes of memory: they add up, and never run back."""
    processed = progress.pages * PAGE_SIZE
    # Before the first page nothing counts as left, which virsh would show as 100 %.
    left = progress.remaining_pages if processed else progress.total_pages
    # Nobody knows how much a toolstack has left, but it is something: with 0 virsh shows 100 %.
    remaining = (1 if left is None else left) * PAGE_SIZE
    return max(progress.total_pages * PAGE_SIZE, processed + remaining), processed, remaining


async def _job_info(session: Session, args: Reader) -> Writer:
    job = _job_of(session, (await find(session, args.domain())).uuid)
    if job is None:
        return Writer().i32(JOB_NONE).u64(*[0] * 11)
    total, processed, remaining = _figures(job.progress)
    elapsed_ms = int(job.progress.elapsed_s * 1000)
    memory = (total, processed, remaining)
    return Writer().i32(JOB_UNBOUNDED).u64(elapsed_ms, 0, *memory, *memory, 0, 0, 0)


async def _job_stats(session: Session, args: Reader) -> Writer:
    domain, flags = args.domain(), args.u32()
    completed = bool(flags & 1)
    job = _job_of(session, domain[1], completed=completed)
    if job is None:
        return Writer().i32(JOB_NONE).u32(0)
    progress = job.progress
    total, processed, remaining = _figures(progress)
    figures = {
        "time_elapsed": int(progress.elapsed_s * 1000),
        "data_total": total,
        "data_processed": processed,
        "data_remaining": remaining,
        "memory_total": total,
        "memory_processed": processed,
        "memory_remaining": remaining,
        "memory_bps": int(progress.current_bytes_per_s),
        "memory_dirty_rate": int(progress.dirty_pages_per_s),
        "memory_page_size": PAGE_SIZE,
        "memory_iteration": progress.iteration,
        "setup_time": int(progress.setup_s * 1000),
    }
    downtime_s = progress.expected_downtime_s
    if progress.downtime is not None and not progress.downtime.at_least:
        downtime_s = progress.downtime.total_s
    if downtime_s is not None:
        figures["downtime"] = int(downtime_s * 1000)
    params: list[Param] = [("operation", Kind.INT, OPERATION_MIGRATION_OUT)]
    params += [(name, Kind.ULLONG, max(0, value)) for name, value in figures.items()]
    return Writer().i32(JOB_COMPLETED if completed else JOB_UNBOUNDED).typed_params(params)


async def _abort_job(session: Session, args: Reader) -> Writer:
    job = _job_of(session, args.domain()[1])
    if job is None:
        raise RpcError(Code.OPERATION_INVALID, "no job is active on the domain")
    if job.abort("virsh") is False:
        raise RpcError(Code.OPERATION_INVALID, "the guest is being handed over already")
    return Writer()


async def _set_downtime(session: Session, args: Reader) -> Writer:
    domain, downtime_ms = args.domain(), args.u64()
    if not 1 <= downtime_ms <= 2_000_000:
        raise RpcError(Code.INVALID_ARG, f"{downtime_ms} ms is no downtime: 1 to 2000000 is")
    uuid = (await find(session, domain)).uuid
    session.host.downtime_ms[uuid] = downtime_ms
    session.host.transfers.allow_downtime(uuid, downtime_ms / 1000)
    return Writer()


async def _get_downtime(session: Session, args: Reader) -> Writer:
    default = int(PrecopyLimits().max_downtime_s * 1000)
    return Writer().u64(session.host.downtime_ms.get(args.domain()[1], default))


async def _set_speed(session: Session, args: Reader) -> Writer:
    domain, mib = args.domain(), args.u64()
    if mib >= 1 << 32:
        raise RpcError(Code.INVALID_ARG, f"{mib} MiB/s is no bandwidth")
    uuid = (await find(session, domain)).uuid
    session.host.speed_mib[uuid] = mib
    session.host.transfers.allow_bandwidth(uuid, mib << 20)
    return Writer()


async def _get_speed(session: Session, args: Reader) -> Writer:
    return Writer().u64(session.host.speed_mib.get(args.domain()[1], 0))


TABLE = {
    61: Procedure("DOMAIN_MIGRATE_PREPARE", _prepare),
    62: Procedure("DOMAIN_MIGRATE_PERFORM", _perform),
    63: Procedure("DOMAIN_MIGRATE_FINISH", _finish),
    108: Procedure("DOMAIN_MIGRATE_PREPARE2", _prepare2),
    109: Procedure("DOMAIN_MIGRATE_FINISH2", _finish2),
    163: Procedure("DOMAIN_GET_JOB_INFO", _job_info, True),
    164: Procedure("DOMAIN_ABORT_JOB", _abort_job),
    166: Procedure("DOMAIN_MIGRATE_SET_MAX_DOWNTIME", _set_downtime),
    207: Procedure("DOMAIN_MIGRATE_SET_MAX_SPEED", _set_speed),
    242: Procedure("DOMAIN_MIGRATE_GET_MAX_SPEED", _get_speed, True),
    298: Procedure("DOMAIN_GET_JOB_STATS", _job_stats, True),
    387: Procedure("DOMAIN_MIGRATE_GET_MAX_DOWNTIME", _get_downtime, True),
    442: Procedure("DOMAIN_ABORT_JOB_FLAGS", _abort_job),
}
