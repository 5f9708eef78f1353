"""Procedures about a guest's memory and vcpus: what it has, and what it is given.

A change goes to the running guest, to the configuration that is kept, or to both, as the flags
say; without one to whichever the guest is. Memory is counted in whole MiB here, in KiB there.
"""

from __future__ import annotations

from collections.abc import Sequence

from xendpy import sxp
from xendpy.control.events import EventKind
from xendpy.control.libvirt.guests import find
from xendpy.control.libvirt.session import Procedure, Session
from xendpy.control.libvirt.wire import Code
from xendpy.control.libvirt.xdr import Reader, Writer
from xendpy.errors import RpcError
from xendpy.guest.domain import DomainConfig, DomainState, DomainSummary

LIVE, CONFIG, MAXIMUM = 0x1, 0x2, 0x4  # virDomainModificationImpact, and of what
VCPU_OFFLINE, VCPU_RUNNING, VCPU_BLOCKED = 0, 1, 2
NO_CPU = -1  # which cpu it is on is not known here; virsh shows "N/A"
MAX_MAPS = 1 << 20  # bytes of cpumaps in one answer
BALLOON_AVAILABLE, BALLOON_ACTUAL = 5, 6  # virDomainMemoryStatTags


def _reach(session: Session, guest: DomainSummary, flags: int) -> tuple[bool, DomainConfig | None]:
    """Return whether the flags mean the running guest, and the kept configuration if they do."""
    live, kept = bool(flags & LIVE), bool(flags & CONFIG)
    if not live and not kept:
        live, kept = guest.domid is not None, guest.domid is None
    if live and guest.domid is None:
        raise RpcError(Code.OPERATION_INVALID, "domain is not running")
    config = session.guests.managed.get(guest.uuid) if kept else None
    if kept and config is None:
        raise RpcError(
            Code.OPERATION_INVALID, "transient domains do not have any persistent config"
        )
    return live, config


async def _keep(session: Session, guest: DomainSummary, config: DomainConfig) -> None:
    await session.guests.workers.quick(session.guests.managed.put, config)
    session.guests.events.emit(EventKind.DEFINED, guest)


async def _set_memory(session: Session, args: Reader) -> Writer:
    return await _give_memory(session, args.domain(), args.u64(), LIVE)


async def _set_max_memory(session: Session, args: Reader) -> Writer:
    return await _give_memory(session, args.domain(), args.u64(), MAXIMUM)


async def _set_memory_flags(session: Session, args: Reader) -> Writer:
    return await _give_memory(session, args.domain(), args.u64(), args.u32())


async def _give_memory(
    session: Session, domain: tuple[str, str, int], kib: int, flags: int
) -> Writer:
    guest, mib = await find(session, domain), -(-kib // 1024)
    live, config = _reach(session, guest, flags)
    most = config.maxmem_mib if config is not None else guest.maxmem_mib
    if not flags & MAXIMUM and mib > most:
        raise RpcError(Code.INVALID_ARG, f"{mib} MiB is more than the {most} MiB it may have")
    if live:
        change = session.guests.set_maxmem if flags & MAXIMUM else session.guests.set_memory
        await change(guest.uuid, mib)
    if config is not None and flags & MAXIMUM:
        least = min(config.memory_mib, mib)
        await _keep(session, guest, config.with_values(maxmem=mib, memory=least))
    elif config is not None:
        await _keep(session, guest, config.with_values(memory=mib))
    return Writer()


async def _set_vcpus(session: Session, args: Reader) -> Writer:
    return await _give_vcpus(session, args.domain(), args.u32(), LIVE)


async def _set_vcpus_flags(session: Session, args: Reader) -> Writer:
    return await _give_vcpus(session, args.domain(), args.u32(), args.u32())


async def _give_vcpus(
    session: Session, domain: tuple[str, str, int], count: int, flags: int
) -> Writer:
    guest = await find(session, domain)
    live, config = _reach(session, guest, flags)
    if live and flags & MAXIMUM:
        raise RpcError(Code.INVALID_ARG, "the maximum of a running guest's vcpus cannot change")
    most = config.vcpus if config is not None else guest.vcpus
    if not flags & MAXIMUM and not 0 < count <= most:
        raise RpcError(Code.INVALID_ARG, f"{count} vcpus: 1 to {most} is what it may have")
    if live:
        await session.guests.set_vcpus(guest.uuid, count)
    if config is not None:
        online = min(config.online_vcpus, count) if flags & MAXIMUM else count
        most = count if flags & MAXIMUM else config.vcpus
        changed = config.with_values(vcpus=most, vcpu_avail=(1 << online) - 1)
        await _keep(session, guest, changed)
    return Writer()


async def _max_memory(session: Session, args: Reader) -> Writer:
    return Writer().u64((await find(session, args.domain())).maxmem_mib << 10)


async def _max_vcpus(session: Session, args: Reader) -> Writer:
    return Writer().i32((await find(session, args.domain())).vcpus)


async def _vcpu_count(session: Session, args: Reader) -> Writer:
    guest, flags = await find(session, args.domain()), args.u32()
    _, config = _reach(session, guest, flags)
    of = config or guest
    return Writer().i32(of.vcpus if flags & MAXIMUM else of.online_vcpus)


async def _memory_stats(session: Session, args: Reader) -> Writer:
    guest, most = await find(session, args.domain()), args.u32()
    if guest.domid is None:
        raise RpcError(Code.OPERATION_INVALID, "domain is not running")
    figures = [(BALLOON_ACTUAL, guest.memory_mib), (BALLOON_AVAILABLE, guest.maxmem_mib)][:most]
    writer = Writer().u32(len(figures))
    for tag, mib in figures:
        writer.i32(tag).u64(mib << 10)
    return writer


async def _vcpus(session: Session, args: Reader) -> Writer:
    guest, most, length = await find(session, args.domain()), args.i32(), args.i32()
    if guest.domid is None:
        raise RpcError(Code.OPERATION_INVALID, "domain is not running")
    count = min(guest.vcpus, max(0, most))
    blocked = guest.state is DomainState.BLOCKED
    share_ns = int(guest.cpu_time_s * 1e9 / max(1, guest.online_vcpus))
    writer = Writer().u32(count)
    for number in range(count):
        if number < guest.online_vcpus:
            state = VCPU_BLOCKED if blocked else VCPU_RUNNING
            writer.u32(number).i32(state).u64(share_ns).i32(NO_CPU)
        else:
            writer.u32(number).i32(VCPU_OFFLINE).u64(0).i32(NO_CPU)
    return writer.opaque(_maps(session, guest.config, count, length))


async def _pinning(session: Session, args: Reader) -> Writer:
    guest, most, length = await find(session, args.domain()), args.i32(), args.i32()
    _, config = _reach(session, guest, args.u32())
    count = min((config or guest).vcpus, max(0, most))
    return Writer().opaque(_maps(session, config or guest.config, count, length)).i32(count)


def _maps(session: Session, config: DomainConfig, count: int, length: int) -> bytes:
    """Return the cpus of each of `count` vcpus, in `length` bytes of bits each."""
    if not 0 <= length * count <= MAX_MAPS:
        raise RpcError(Code.INVALID_ARG, f"{count} maps of {length} bytes are not given")
    said = sxp.child_value(config.tree, "cpus")
    rows = said if isinstance(said, list) else []
    any_cpu = range(session.guests.host.nr_cpus())
    return b"".join(
        bit_map((_cpus(rows[number]) if number < len(rows) else []) or any_cpu, length)
        for number in range(count)
    )


def _cpus(row: sxp.SxpValue) -> list[int]:
    items = row if isinstance(row, list) else []
    return [int(cpu) for cpu in items if isinstance(cpu, str) and cpu.isdecimal()]


def bit_map(cpus: Sequence[int], length: int) -> bytes:
    """Return cpus as bits, the first in the lowest bit of the first byte, in `length` bytes."""
    bits = sum(1 << cpu for cpu in set(cpus) if 0 <= cpu < length * 8)
    return bits.to_bytes(length, "little")


TABLE = {
    17: Procedure("DOMAIN_GET_MAX_MEMORY", _max_memory, True),
    18: Procedure("DOMAIN_GET_MAX_VCPUS", _max_vcpus, True),
    20: Procedure("DOMAIN_GET_VCPUS", _vcpus, True),
    30: Procedure("DOMAIN_SET_MAX_MEMORY", _set_max_memory),
    31: Procedure("DOMAIN_SET_MEMORY", _set_memory),
    32: Procedure("DOMAIN_SET_VCPUS", _set_vcpus),
    159: Procedure("DOMAIN_MEMORY_STATS", _memory_stats, True),
    199: Procedure("DOMAIN_SET_VCPUS_FLAGS", _set_vcpus_flags),
    200: Procedure("DOMAIN_GET_VCPUS_FLAGS", _vcpu_count, True),
    204: Procedure("DOMAIN_SET_MEMORY_FLAGS", _set_memory_flags),
    230: Procedure("DOMAIN_GET_VCPU_PIN_INFO", _pinning, True),
}
