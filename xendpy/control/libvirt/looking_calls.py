"""Procedures that look at guests: listing, finding, state and statistics. None changes one."""

from __future__ import annotations

from xendpy.control.libvirt.guests import (
    BLOCKED,
    add_domain,
    find,
    has_managed_save,
    is_persistent,
    reason_of,
    starts_by_itself,
    state_of,
)
from xendpy.control.libvirt.reasons import PAUSED, RUNNING, SHUTOFF
from xendpy.control.libvirt.session import Procedure, Session
from xendpy.control.libvirt.wire import Code
from xendpy.control.libvirt.xdr import Kind, Param, Reader, Writer
from xendpy.errors import DomainNotFound, RpcError
from xendpy.guest.domain import DomainSummary, GuestType

# virConnectListAllDomainsFlags, in groups: of each group that is asked for one must hold
_ACTIVE, _INACTIVE, _PERSISTENT, _TRANSIENT = 0x1, 0x2, 0x4, 0x8
_RUNNING, _PAUSED, _SHUTOFF, _OTHER = 0x10, 0x20, 0x40, 0x80
_MANAGED_SAVE, _NO_MANAGED_SAVE, _AUTOSTART, _NO_AUTOSTART = 0x100, 0x200, 0x400, 0x800
_SNAPSHOT, _NO_SNAPSHOT, _CHECKPOINT, _NO_CHECKPOINT = 0x1000, 0x2000, 0x4000, 0x8000
_STATS_STATE, _STATS_CPU, _STATS_BALLOON, _STATS_VCPU = 0x1, 0x2, 0x4, 0x8
_STATS_KNOWN = _STATS_STATE | _STATS_CPU | _STATS_BALLOON | _STATS_VCPU
_STATS_ENFORCE = 0x80000000


def _wanted(session: Session, guest: DomainSummary, flags: int) -> bool:
    state = state_of(guest)
    active, persistent = guest.domid is not None, is_persistent(session, guest)
    saved, autostart = has_managed_save(session, guest), starts_by_itself(session, guest)
    is_running = state in (RUNNING, BLOCKED)
    groups = (
        ((_ACTIVE, active), (_INACTIVE, not active)),
        ((_PERSISTENT, persistent), (_TRANSIENT, not persistent)),
        (
            (_RUNNING, is_running),
            (_PAUSED, state == PAUSED),
            (_SHUTOFF, state == SHUTOFF),
            (_OTHER, not is_running and state not in (PAUSED, SHUTOFF)),
        ),
        ((_MANAGED_SAVE, saved), (_NO_MANAGED_SAVE, not saved)),
        ((_AUTOSTART, autostart), (_NO_AUTOSTART, not autostart)),
        ((_SNAPSHOT, False), (_NO_SNAPSHOT, True)),  # there are none
        ((_CHECKPOINT, False), (_NO_CHECKPOINT, True)),
    )
    for group in groups:
        asked = [holds for flag, holds in group if flags & flag]
        if asked and not any(asked):
            return False
    return True


async def _list_all(session: Session, args: Reader) -> Writer:
    want_results, flags = args.i32(), args.u32()
    guests = [item for item in await session.view.all() if _wanted(session, item, flags)]
    writer = Writer().u32(len(guests) if want_results else 0)
    for guest in guests if want_results else ():
        add_domain(writer, guest)
    return writer.u32(len(guests))


async def _live_ids(session: Session, args: Reader) -> Writer:
    live = [item.domid for item in await session.view.live() if item.domid is not None]
    return Writer().u32(len(live)).i32(*live)


async def _live_count(session: Session, args: Reader) -> Writer:
    return Writer().i32(len(await session.view.live()))


async def _defined(session: Session) -> list[str]:
    return [item.name for item in await session.view.all() if item.domid is None]


async def _defined_names(session: Session, args: Reader) -> Writer:
    return Writer().strings(await _defined(session))


async def _defined_count(session: Session, args: Reader) -> Writer:
    return Writer().i32(len(await _defined(session)))


async def _by_name(session: Session, args: Reader) -> Writer:
    name = args.string()
    for guest in await session.view.all():
        if name in (guest.name, guest.config.name):
            return add_domain(Writer(), guest)
    raise DomainNotFound(f"no domain with matching name '{name}'")


async def _by_id(session: Session, args: Reader) -> Writer:
    number = args.i32()
    for guest in await session.view.live():
        if guest.domid == number:
            return add_domain(Writer(), guest)
    raise DomainNotFound(f"no domain with matching id {number}")


async def _by_uuid(session: Session, args: Reader) -> Writer:
    return add_domain(Writer(), await session.view.find(args.uuid()))


async def _state(session: Session, args: Reader) -> Writer:
    guest = await find(session, args.domain())
    return Writer().i32(state_of(guest), reason_of(session, guest))


async def _info(session: Session, args: Reader) -> Writer:
    guest = await find(session, args.domain())
    writer = Writer().i32(state_of(guest)).u64(guest.maxmem_mib << 10, guest.memory_mib << 10)
    return writer.i32(guest.vcpus).u64(int(guest.cpu_time_s * 1e9))


async def _os_type(session: Session, args: Reader) -> Writer:
    guest = await find(session, args.domain())
    return Writer().string("hvm" if guest.config.guest_type is GuestType.HVM else "linux")


async def _is_persistent(session: Session, args: Reader) -> Writer:
    return Writer().i32(int(is_persistent(session, await find(session, args.domain()))))


async def _is_active(session: Session, args: Reader) -> Writer:
    return Writer().i32(int((await find(session, args.domain())).domid is not None))


async def _get_autostart(session: Session, args: Reader) -> Writer:
    return Writer().i32(int(starts_by_itself(session, await find(session, args.domain()))))


async def _messages(session: Session, args: Reader) -> Writer:
    guest = await find(session, args.domain())
    return Writer().strings([guest.note] if guest.note else [])


async def _stats(session: Session, args: Reader) -> Writer:
    wanted = {domain[1] for domain in args.items(args.domain)}
    kinds, flags = args.u32(), args.u32()
    unknown = kinds & ~_STATS_KNOWN
    if unknown and flags & _STATS_ENFORCE:
        raise RpcError(Code.ARGUMENT_UNSUPPORTED, f"Stats types bits {unknown:#x} are not there")
    guests = [
        item
        for item in await session.view.all()
        if (item.uuid in wanted if wanted else _wanted(session, item, flags & 0xFF))
    ]
    writer = Writer().u32(len(guests))
    for guest in guests:
        add_domain(writer, guest)
        writer.typed_params(_stats_of(session, guest, kinds or _STATS_KNOWN))
    return writer


def _stats_of(session: Session, guest: DomainSummary, kinds: int) -> list[Param]:
    cpu_ns = max(0, int(guest.cpu_time_s * 1e9))
    rows: tuple[tuple[int, str, Kind, int], ...] = (
        (_STATS_STATE, "state.state", Kind.INT, state_of(guest)),
        (_STATS_STATE, "state.reason", Kind.INT, reason_of(session, guest)),
        (_STATS_CPU, "cpu.time", Kind.ULLONG, cpu_ns),
        (_STATS_BALLOON, "balloon.current", Kind.ULLONG, guest.memory_mib << 10),
        (_STATS_BALLOON, "balloon.maximum", Kind.ULLONG, guest.maxmem_mib << 10),
        (_STATS_VCPU, "vcpu.current", Kind.UINT, guest.online_vcpus),
        (_STATS_VCPU, "vcpu.maximum", Kind.UINT, guest.vcpus),
    )
    return [(name, kind, value) for group, name, kind, value in rows if kinds & group]


TABLE = {
    15: Procedure("DOMAIN_GET_AUTOSTART", _get_autostart, True),
    16: Procedure("DOMAIN_GET_INFO", _info, True),
    19: Procedure("DOMAIN_GET_OS_TYPE", _os_type, True),
    21: Procedure("CONNECT_LIST_DEFINED_DOMAINS", _defined_names, True),
    22: Procedure("DOMAIN_LOOKUP_BY_ID", _by_id, True),
    23: Procedure("DOMAIN_LOOKUP_BY_NAME", _by_name, True),
    24: Procedure("DOMAIN_LOOKUP_BY_UUID", _by_uuid, True),
    25: Procedure("CONNECT_NUM_OF_DEFINED_DOMAINS", _defined_count, True),
    37: Procedure("CONNECT_LIST_DOMAINS", _live_ids, True),
    51: Procedure("CONNECT_NUM_OF_DOMAINS", _live_count, True),
    150: Procedure("DOMAIN_IS_ACTIVE", _is_active, True),
    151: Procedure("DOMAIN_IS_PERSISTENT", _is_persistent, True),
    212: Procedure("DOMAIN_GET_STATE", _state, True),
    273: Procedure("CONNECT_LIST_ALL_DOMAINS", _list_all, True),
    344: Procedure("CONNECT_GET_ALL_DOMAIN_STATS", _stats, True),
    426: Procedure("DOMAIN_GET_MESSAGES", _messages, True),
}
