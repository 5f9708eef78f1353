"""Procedures about a guest's memory in a file: save and restore, and those of managed guests."""

from __future__ import annotations

from pathlib import Path

from xendpy.control.libvirt.domain_xml import to_xml
from xendpy.control.libvirt.guests import find, has_managed_save
from xendpy.control.libvirt.session import Procedure, Session
from xendpy.control.libvirt.wire import Code
from xendpy.control.libvirt.xdr import Reader, Writer
from xendpy.control.managed import inactive
from xendpy.errors import RpcError
from xendpy.migration.saved_file import saved_config

_RESTORE_PAUSED = 0x4


async def _save(session: Session, args: Reader) -> Writer:
    domain, path = args.domain(), args.string()
    await session.guests.save(domain[1], path)
    return Writer()


async def _save_flags(session: Session, args: Reader) -> Writer:
    domain, path, xml = args.domain(), args.string(), args.opt_string()
    if xml is not None:
        raise RpcError(Code.ARGUMENT_UNSUPPORTED, "another configuration cannot be saved")
    await session.guests.save(domain[1], path)
    return Writer()


async def _restore(session: Session, args: Reader) -> Writer:
    await session.guests.restore(args.string())
    return Writer()


async def _restore_flags(session: Session, args: Reader) -> Writer:
    path, xml, flags = args.string(), args.opt_string(), args.u32()
    if xml is not None:
        raise RpcError(Code.ARGUMENT_UNSUPPORTED, "another configuration cannot be restored")
    await session.guests.restore(path, paused=bool(flags & _RESTORE_PAUSED))
    return Writer()


async def _saved_xml(session: Session, args: Reader) -> Writer:
    config = await session.guests.workers.quick(saved_config, Path(args.string()))
    return Writer().string(to_xml(inactive(config)))


async def _managed_save_there(session: Session, args: Reader) -> Writer:
    return Writer().i32(int(has_managed_save(session, await find(session, args.domain()))))


async def _managed_save(session: Session, args: Reader) -> Writer:
    await session.guests.suspend(args.domain()[1])
    return Writer()


async def _managed_save_remove(session: Session, args: Reader) -> Writer:
    guest = await find(session, args.domain())
    checkpoint = session.guests.managed.checkpoint(guest.uuid)
    await session.guests.workers.quick(lambda: checkpoint.unlink(missing_ok=True))
    return Writer()


async def _managed_save_xml(session: Session, args: Reader) -> Writer:
    guest = await find(session, args.domain())
    if not has_managed_save(session, guest):
        raise RpcError(Code.OPERATION_INVALID, "domain does not have managed save image")
    file = session.guests.managed.checkpoint(guest.uuid)
    config = await session.guests.workers.quick(saved_config, file)
    return Writer().string(to_xml(inactive(config)))


TABLE = {
    54: Procedure("DOMAIN_RESTORE", _restore),
    55: Procedure("DOMAIN_SAVE", _save),
    182: Procedure("DOMAIN_MANAGED_SAVE", _managed_save),
    183: Procedure("DOMAIN_HAS_MANAGED_SAVE_IMAGE", _managed_save_there, True),
    184: Procedure("DOMAIN_MANAGED_SAVE_REMOVE", _managed_save_remove),
    232: Procedure("DOMAIN_SAVE_FLAGS", _save_flags),
    233: Procedure("DOMAIN_RESTORE_FLAGS", _restore_flags),
    235: Procedure("DOMAIN_SAVE_IMAGE_GET_XML_DESC", _saved_xml),
    388: Procedure("DOMAIN_MANAGED_SAVE_GET_XML_DESC", _managed_save_xml, True),
}
