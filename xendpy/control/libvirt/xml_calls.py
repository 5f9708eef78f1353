"""Procedures that write a guest's configuration down: libvirt's XML, and xend's s-expression.

`xen-sxpr` is what `xm list --long` and `xm create --dryrun` print.
"""

from __future__ import annotations

from xendpy import sxp
from xendpy.control.libvirt.domain_xml import to_xml
from xendpy.control.libvirt.guests import find
from xendpy.control.libvirt.session import Procedure, Session
from xendpy.control.libvirt.wire import Code
from xendpy.control.libvirt.xdr import Reader, Writer
from xendpy.control.libvirt.xml_config import MAX_XML, from_xml
from xendpy.control.managed import inactive
from xendpy.control.new_config import new_config
from xendpy.errors import RpcError

NATIVE = "xen-sxpr"
INACTIVE = 0x2  # virDomainXMLFlags: what the guest starts with next time, as `virsh edit` asks


async def _xml(session: Session, args: Reader) -> Writer:
    guest, flags = await find(session, args.domain()), args.u32()
    kept = session.guests.managed.get(guest.uuid) if flags & INACTIVE else None
    return Writer().string(to_xml(guest if kept is None else inactive(kept)))


def _check_format(name: str) -> None:
    if name != NATIVE:
        raise RpcError(
            Code.INVALID_ARG,
            f"config type {name} is not known, {NATIVE} is; `xm create --dryrun FILE | sed 1d`"
            " makes that of a configuration file",
        )


async def _from_native(session: Session, args: Reader) -> Writer:
    name, text = args.string(), args.string()
    _check_format(name)
    if len(text) > MAX_XML:
        raise RpcError(Code.INVALID_ARG, "the configuration is too large")
    config = new_config(sxp.parse_one(text.encode()))
    return Writer().string(to_xml(inactive(config)))


async def _to_native(session: Session, args: Reader) -> Writer:
    name, text = args.string(), args.string()
    _check_format(name)
    config = new_config(from_xml(text))
    return Writer().string(sxp.pretty(config.tree))


TABLE = {
    14: Procedure("DOMAIN_GET_XML_DESC", _xml, True),
    135: Procedure("CONNECT_DOMAIN_XML_FROM_NATIVE", _from_native, True),
    136: Procedure("CONNECT_DOMAIN_XML_TO_NATIVE", _to_native, True),
}
