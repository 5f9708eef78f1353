"""Procedures that change a guest: its coming and going."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from xendpy import sxp
from xendpy.control.libvirt.guests import add_domain, find, has_managed_save, undefine
from xendpy.control.libvirt.redefine import redefined
from xendpy.control.libvirt.session import Handler, Procedure, Session
from xendpy.control.libvirt.wire import Code
from xendpy.control.libvirt.xdr import Reader, Writer
from xendpy.control.libvirt.xml_config import from_xml
from xendpy.control.new_config import new_config
from xendpy.errors import RpcError
from xendpy.guest.domain import DomainConfig, DomainSummary
from xendpy.guest.origin import as_received

_START_PAUSED = 0x1
_UNDEFINE_MANAGED_SAVE = 0x1


async def _run(session: Session, config: DomainConfig, *, paused: bool) -> DomainSummary:
    guest = await session.guests.create(config)
    if not paused:
        await session.guests.unpause(guest.uuid)
    return await session.guests.get(guest.uuid)


async def _create_xml(session: Session, args: Reader) -> Writer:
    xml, flags = args.string(), args.u32()
    config = new_config(from_xml(xml), session.guests.defaults)
    return add_domain(Writer(), await _run(session, config, paused=bool(flags & _START_PAUSED)))


async def _define(session: Session, args: Reader) -> Writer:
    said = from_xml(args.string())
    old = await _known(session, str(sxp.child_value(said, "uuid")))
    if old is not None:
        said = redefined(said, old)
    config = new_config(said, session.guests.defaults)
    return add_domain(Writer(), await session.guests.new(config))


async def _known(session: Session, uuid: str) -> DomainConfig | None:
    """Return the configuration of a guest that is here already: the kept one before the live.

    What the XML does not show of it is kept, so it stays as received if it was.
    """
    kept = session.guests.managed.get(uuid)
    if kept is not None:
        return kept
    for guest in await session.guests.live():
        if guest.uuid == uuid:
            return as_received(guest.config) if guest.received else guest.config
    return None


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


async def _set_autostart(session: Session, args: Reader) -> Writer:
    guest, on = await find(session, args.domain()), args.i32()
    config = session.guests.managed.get(guest.uuid)
    if config is None:
        raise RpcError(Code.OPERATION_INVALID, "cannot set autostart for transient domain")
    changed = config.with_values(on_xend_start="start" if on else "ignore")
    await session.guests.workers.quick(session.guests.managed.put, changed)
    return Writer()


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
    27: Procedure("DOMAIN_REBOOT", _reboot),
    28: Procedure("DOMAIN_RESUME", _resume),
    29: Procedure("DOMAIN_SET_AUTOSTART", _set_autostart),
    33: Procedure("DOMAIN_SHUTDOWN", _shutdown),
    34: Procedure("DOMAIN_SUSPEND", _suspend),
    35: Procedure("DOMAIN_UNDEFINE", _undefine),
    196: Procedure("DOMAIN_CREATE_WITH_FLAGS", _start_flags),
    231: Procedure("DOMAIN_UNDEFINE_FLAGS", _undefine_flags),
    234: Procedure("DOMAIN_DESTROY_FLAGS", _destroy),
    258: Procedure("DOMAIN_SHUTDOWN_FLAGS", _shutdown),
    350: Procedure("DOMAIN_DEFINE_XML_FLAGS", _define),
    358: Procedure("DOMAIN_RENAME", _rename),
}
