"""Procedures about guests: looking at them, and their coming and going."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from xendpy.control.events import EventKind
from xendpy.control.libvirt.reasons import PAUSED, RUNNING, SHUTOFF
from xendpy.control.libvirt.session import Handler, Procedure, Session
from xendpy.control.libvirt.wire import Code
from xendpy.control.libvirt.xdr import Kind, Param, Reader, Writer
from xendpy.control.libvirt.xml_config import from_xml
from xendpy.control.live_guests import MIGRATED
from xendpy.control.new_config import new_config
from xendpy.errors import DomainNotFound, RpcError
from xendpy.guest.domain import DomainConfig, DomainState, DomainSummary, GuestType

BLOCKED, SHUTDOWN, CRASHED = 2, 4, 6  # the other numbers of virDomainState
_STATES = {
    DomainState.RUNNING: RUNNING,
    DomainState.BLOCKED: BLOCKED,
    DomainState.PAUSED: PAUSED,
    DomainState.SUSPENDED: PAUSED,
    DomainState.INCOMING: PAUSED,
    DomainState.SHUTDOWN: SHUTOFF,
    DomainState.CRASHED: CRASHED,
    DomainState.DYING: SHUTDOWN,
}
# virConnectListAllDomainsFlags, in groups: of each group that is asked for one must hold
_ACTIVE, _INACTIVE, _PERSISTENT, _TRANSIENT = 0x1, 0x2, 0x4, 0x8
_RUNNING, _PAUSED, _SHUTOFF, _OTHER = 0x10, 0x20, 0x40, 0x80
_MANAGED_SAVE, _NO_MANAGED_SAVE, _AUTOSTART, _NO_AUTOSTART = 0x100, 0x200, 0x400, 0x800
_SNAPSHOT, _NO_SNAPSHOT, _CHECKPOINT, _NO_CHECKPOINT = 0x1000, 0x2000, 0x4000, 0x8000
_STATS_STATE, _STATS_CPU, _STATS_BALLOON, _STATS_VCPU = 0x1, 0x2, 0x4, 0x8
_STATS_KNOWN = _STATS_STATE | _STATS_CPU | _STATS_BALLOON | _STATS_VCPU
_STATS_ENFORCE = 0x80000000
_START_PAUSED = 0x1
_UNDEFINE_MANAGED_SAVE = 0x1


def state_of(guest: DomainSummary) -> int:
    """Return a guest's state in libvirt's numbers."""
    return SHUTOFF if guest.domid is None else _STATES[guest.state]


def reason_of(session: Session, guest: DomainSummary) -> int:
    """Return libvirt's reason for a guest's state, as far as it is known; 0 = unknown."""
    moves = session.guests.operations.of(guest.uuid) == MIGRATED
    return session.host.reasons.of(guest, state_of(guest), moves=moves)


async def find(session: Session, domain: tuple[str, str, int]) -> DomainSummary:
    """Return the guest that a `nonnull_domain` means: the uuid counts."""
    return await session.view.find(domain[1])


def add_domain(writer: Writer, guest: DomainSummary) -> Writer:
    """Add a guest as a `nonnull_domain`: by its own name, also while it moves."""
    return writer.domain(guest.config.name, guest.uuid, guest.domid)


def is_persistent(session: Session, guest: DomainSummary) -> bool:
    """Say whether the guest's configuration stays when it ends."""
    return guest.domid == 0 or session.guests.managed.get(guest.uuid) is not None


def _autostart(session: Session, guest: DomainSummary) -> bool:
    config = session.guests.managed.get(guest.uuid)
    return config is not None and config.text("on_xend_start", "ignore") == "start"


def has_managed_save(session: Session, guest: DomainSummary) -> bool:
    return guest.domid is None and session.guests.managed.checkpoint(guest.uuid).exists()


def _wanted(session: Session, guest: DomainSummary, flags: int) -> bool:
    state = state_of(guest)
    active, persistent = guest.domid is not None, is_persistent(session, guest)
    saved, autostart = has_managed_save(session, guest), _autostart(session, guest)
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
    return Writer().i32(int(_autostart(session, await find(session, args.domain()))))


async def _set_autostart(session: Session, args: Reader) -> Writer:
    guest, on = await find(session, args.domain()), args.i32()
    config = session.guests.managed.get(guest.uuid)
    if config is None:
        raise RpcError(Code.OPERATION_INVALID, "cannot set autostart for transient domain")
    changed = config.with_values(on_xend_start="start" if on else "ignore")
    await session.guests.workers.quick(session.guests.managed.put, changed)
    return Writer()


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


# Coming and going


async def _run(session: Session, config: DomainConfig, *, paused: bool) -> DomainSummary:
    guest = await session.guests.create(config)
    if not paused:
        await session.guests.unpause(guest.uuid)
    return await session.guests.get(guest.uuid)


async def _create_xml(session: Session, args: Reader) -> Writer:
    xml, flags = args.string(), args.u32()
    config = new_config(from_xml(xml))
    return add_domain(Writer(), await _run(session, config, paused=bool(flags & _START_PAUSED)))


async def _define(session: Session, args: Reader) -> Writer:
    return add_domain(Writer(), await session.guests.new(new_config(from_xml(args.string()))))


async def _start(session: Session, args: Reader) -> Writer:
    await session.guests.start(args.domain()[1])
    return Writer()


async def _start_flags(session: Session, args: Reader) -> Writer:
    domain, flags = args.domain(), args.u32()
    await session.guests.start(domain[1], paused=bool(flags & _START_PAUSED))
    return add_domain(Writer(), await session.guests.get(domain[1]))


async def _undefine(session: Session, args: Reader) -> Writer:
    return await _forget(session, args.domain(), 0)


async def _undefine_flags(session: Session, args: Reader) -> Writer:
    return await _forget(session, args.domain(), args.u32())


async def _forget(session: Session, domain: tuple[str, str, int], flags: int) -> Writer:
    guest = await find(session, domain)
    if has_managed_save(session, guest) and not flags & _UNDEFINE_MANAGED_SAVE:
        raise RpcError(
            Code.OPERATION_INVALID, "Refusing to undefine while domain managed save image exists"
        )
    if guest.domid is not None and session.guests.managed.get(guest.uuid) is not None:
        await undefine(session, guest)
    else:
        await session.guests.delete(guest.uuid)
    return Writer()


async def undefine(session: Session, guest: DomainSummary) -> None:
    """Forget the configuration of a managed guest, which may run or have moved away."""
    await session.guests.workers.quick(session.guests.managed.remove, guest.uuid)
    session.guests.events.emit(EventKind.UNDEFINED, guest)


async def _rename(session: Session, args: Reader) -> Writer:
    domain, name = args.domain(), args.opt_string()
    await session.guests.rename(domain[1], name or "")
    return Writer().i32(0)


async def _suspend(session: Session, args: Reader) -> Writer:
    uuid = args.domain()[1]
    if not session.host.transfers.hurry(uuid):  # virsh migrate --timeout stops the guest so
        await session.guests.pause(uuid)
    return Writer()


def _on_guest(act: Callable[[Session, str], Awaitable[None]]) -> Handler:
    """Return the handler of a procedure that does one thing with a domain."""

    async def handler(session: Session, args: Reader) -> Writer:
        await act(session, args.domain()[1])
        return Writer()

    return handler


_reboot = _on_guest(lambda session, uuid: session.guests.reboot(uuid))
_shutdown = _on_guest(lambda session, uuid: session.guests.shutdown(uuid))
_destroy = _on_guest(lambda session, uuid: session.guests.destroy(uuid))
_resume = _on_guest(lambda session, uuid: session.guests.unpause(uuid))

TABLE = {
    9: Procedure("DOMAIN_CREATE", _start),
    10: Procedure("DOMAIN_CREATE_XML", _create_xml),
    11: Procedure("DOMAIN_DEFINE_XML", _define),
    12: Procedure("DOMAIN_DESTROY", _destroy),
    15: Procedure("DOMAIN_GET_AUTOSTART", _get_autostart, True),
    16: Procedure("DOMAIN_GET_INFO", _info, True),
    19: Procedure("DOMAIN_GET_OS_TYPE", _os_type, True),
    21: Procedure("CONNECT_LIST_DEFINED_DOMAINS", _defined_names, True),
    22: Procedure("DOMAIN_LOOKUP_BY_ID", _by_id, True),
    23: Procedure("DOMAIN_LOOKUP_BY_NAME", _by_name, True),
    24: Procedure("DOMAIN_LOOKUP_BY_UUID", _by_uuid, True),
    25: Procedure("CONNECT_NUM_OF_DEFINED_DOMAINS", _defined_count, True),
    27: Procedure("DOMAIN_REBOOT", _reboot),
    28: Procedure("DOMAIN_RESUME", _resume),
    29: Procedure("DOMAIN_SET_AUTOSTART", _set_autostart),
    33: Procedure("DOMAIN_SHUTDOWN", _shutdown),
    34: Procedure("DOMAIN_SUSPEND", _suspend),
    35: Procedure("DOMAIN_UNDEFINE", _undefine),
    37: Procedure("CONNECT_LIST_DOMAINS", _live_ids, True),
    51: Procedure("CONNECT_NUM_OF_DOMAINS", _live_count, True),
    150: Procedure("DOMAIN_IS_ACTIVE", _is_active, True),
    151: Procedure("DOMAIN_IS_PERSISTENT", _is_persistent, True),
    196: Procedure("DOMAIN_CREATE_WITH_FLAGS", _start_flags),
    212: Procedure("DOMAIN_GET_STATE", _state, True),
    231: Procedure("DOMAIN_UNDEFINE_FLAGS", _undefine_flags),
    234: Procedure("DOMAIN_DESTROY_FLAGS", _destroy),
    258: Procedure("DOMAIN_SHUTDOWN_FLAGS", _shutdown),
    273: Procedure("CONNECT_LIST_ALL_DOMAINS", _list_all, True),
    344: Procedure("CONNECT_GET_ALL_DOMAIN_STATS", _stats, True),
    350: Procedure("DOMAIN_DEFINE_XML_FLAGS", _define),
    358: Procedure("DOMAIN_RENAME", _rename),
    426: Procedure("DOMAIN_GET_MESSAGES", _messages, True),
}
