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
from xendpy.control.libvirt.xml_config import from_xml
from xendpy.control.managed import inactive
from xendpy.control.new_config import new_config
from xendpy.errors import RpcError

NATIVE = "xen-sxpr"
MAX_NATIVE = 256 << 10  # characters, up to 0.6 s of work; a guest of a hundred devices has 30,000
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
    if len(text) > MAX_NATIVE:
        raise RpcError(
            Code.INVALID_ARG,
            f"the configuration is too large: {len(text)} characters, at most {MAX_NATIVE}",
        )
    return Writer().string(await session.guests.workers.quick(_as_xml, text))


def _as_xml(native: str) -> str:
    return to_xml(inactive(new_config(sxp.parse_one(native.encode()))))


async def _to_native(session: Session, args: Reader) -> Writer:
    name, text = args.string(), args.string()
    _check_format(name)
    return Writer().string(await session.guests.workers.quick(_as_native, text))


def _as_native(text: str) -> str:
    return sxp.pretty(new_config(from_xml(text)).tree)


TABLE = {
    14: Procedure("DOMAIN_GET_XML_DESC", _xml, True),
    # Not for those who may only look, as in libvirt (@acl connect:write): it is work for us.
    135: Procedure("CONNECT_DOMAIN_XML_FROM_NATIVE", _from_native),
    136: Procedure("CONNECT_DOMAIN_XML_TO_NATIVE", _to_native),
}
