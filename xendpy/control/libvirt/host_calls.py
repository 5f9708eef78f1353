"""Procedures about the connection and the host."""

from __future__ import annotations

from xendpy.control.domain_sxp import Tree
from xendpy.control.libvirt.hardware_calls import bit_map
from xendpy.control.libvirt.host_xml import MACHINES, guest_xml, host_xml
from xendpy.control.libvirt.session import Procedure, Session
from xendpy.control.libvirt.wire import Code
from xendpy.control.libvirt.xdr import Reader, Writer
from xendpy.errors import RpcError
from xendpy.guest.domain import MAX_VCPUS

LIBVIRT_VERSION = 9_000_000  # what this protocol is modelled on
FEATURE_V1, FEATURE_V2, FEATURE_P2P, FEATURE_DIRECT = 1, 3, 4, 5
FEATURE_KEEPALIVE, FEATURE_XML_MIGRATABLE, FEATURE_EVENT_CALLBACK = 10, 11, 14
FEATURES = frozenset(
    {
        FEATURE_V1, FEATURE_V2, FEATURE_P2P, FEATURE_DIRECT, FEATURE_KEEPALIVE,
        FEATURE_XML_MIGRATABLE, FEATURE_EVENT_CALLBACK,
    }
)  # fmt: skip
OPEN_READ_ONLY = 1
EVENT_ID_LIFECYCLE = 0
ALL_CELLS = -1


async def _auth_list(session: Session, args: Reader) -> Writer:
    return Writer().u32(1).i32(0)  # NONE: the socket's mode and owner decide


async def _supports_feature(session: Session, args: Reader) -> Writer:
    return Writer().i32(int(args.i32() in FEATURES))


async def _open(session: Session, args: Reader) -> Writer:
    name, flags = args.opt_string(), args.u32()
    scheme = (name or "xen").partition(":")[0].partition("+")[0]
    if scheme not in ("xen", ""):
        raise RpcError(Code.NO_SUPPORT, f"no connection driver available for {name}")
    session.opened = True
    session.read_only = session.read_only or bool(flags & OPEN_READ_ONLY)
    return Writer()


async def _nothing(session: Session, args: Reader) -> Writer:
    return Writer()


async def _uri(session: Session, args: Reader) -> Writer:
    return Writer().string(session.uri)


async def _host_name(session: Session, args: Reader) -> Writer:
    return Writer().string(session.host.host_name())


async def _type(session: Session, args: Reader) -> Writer:
    return Writer().string("Xen")


async def _info(session: Session) -> dict[str, Tree]:
    pairs = await session.guests.node_info(numa=False)
    return {str(pair[0]): pair[1] for pair in pairs if isinstance(pair, list)}


def _int(value: Tree) -> int:
    return value if isinstance(value, int) else 0


async def _version(session: Session, args: Reader) -> Writer:
    info = await _info(session)
    return Writer().u64(_int(info["xen_major"]) * 1_000_000 + _int(info["xen_minor"]) * 1000)


async def _lib_version(session: Session, args: Reader) -> Writer:
    return Writer().u64(LIBVIRT_VERSION)


async def _max_vcpus(session: Session, args: Reader) -> Writer:
    return Writer().i32(MAX_VCPUS)


async def _node_info(session: Session, args: Reader) -> Writer:
    info = await _info(session)
    cpus, threads = _int(info["nr_cpus"]), max(1, _int(info["threads_per_core"]))
    cores = max(1, _int(info["cores_per_socket"]))
    sockets = max(1, cpus // (cores * threads))
    writer = Writer().chars(str(info["machine"]), 32).u64(_int(info["total_memory"]) << 10)
    return writer.i32(cpus, _int(info["cpu_mhz"]), 1, sockets, cores, threads)


async def _free_memory(session: Session, args: Reader) -> Writer:
    return Writer().u64(_int((await _info(session))["free_memory"]) << 20)


async def _capabilities(session: Session, args: Reader) -> Writer:
    info = await _info(session)
    kinds = (await session.guests.capabilities()).guest_types
    return Writer().string(host_xml(str(info["machine"]), _int(info["total_memory"]), kinds))


async def _domain_capabilities(session: Session, args: Reader) -> Writer:
    _emulator, arch, machine, kind = (args.opt_string() for _ in range(4))
    if kind not in (None, "xen") or arch not in (None, "x86_64"):
        raise RpcError(Code.INVALID_ARG, f"no guests of type {kind} and architecture {arch}")
    machines = [MACHINES[kind] for kind in (await session.guests.capabilities()).guest_types]
    if machine not in (None, *machines):
        raise RpcError(Code.INVALID_ARG, f"no machine {machine}: {' or '.join(machines)} is")
    return Writer().string(guest_xml(machine or max(machines), MAX_VCPUS))


async def _cells_free_memory(session: Session, args: Reader) -> Writer:
    first, most = args.i32(), args.i32()
    if first != 0 or most < 1:
        raise RpcError(Code.INVALID_ARG, f"no cell {first}: the host is the one cell 0")
    return Writer().u32(1).u64(_int((await _info(session))["free_memory"]) << 20)


async def _memory_figures(session: Session, args: Reader) -> Writer:
    wanted, cell = args.i32(), args.i32()
    if cell not in (ALL_CELLS, 0):
        raise RpcError(Code.INVALID_ARG, f"no cell {cell}: the host is the one cell 0")
    info = await _info(session)
    figures = [(name, _int(info[f"{name}_memory"]) << 10) for name in ("total", "free")]
    shown = figures if wanted else []
    writer = Writer().u32(len(shown))
    for name, kib in shown:
        writer.string(name).u64(kib)
    return writer.i32(len(figures))


async def _cpu_map(session: Session, args: Reader) -> Writer:
    count = session.guests.host.nr_cpus()
    bits = bit_map(range(count), -(-count // 8)) if args.i32() else b""
    return Writer().opaque(bits).u32(count).i32(count)


async def _no_security_model(session: Session, args: Reader) -> Writer:
    raise RpcError(Code.NO_SUPPORT, "there is no security model")


async def _empty_list(session: Session, args: Reader) -> Writer:
    return Writer().u32(0, 0)


async def _is_secure(session: Session, args: Reader) -> Writer:
    return Writer().i32(int(not session.local_address))  # a unix socket is


async def _register_event(session: Session, args: Reader) -> Writer:
    event, domain = args.i32(), args.optional(args.domain)
    if event != EVENT_ID_LIFECYCLE:
        raise RpcError(Code.NO_SUPPORT, f"event {event} is not supported, lifecycle is")
    return Writer().i32(session.subscribe(domain[1] if domain else None))


async def _deregister_event(session: Session, args: Reader) -> Writer:
    session.unsubscribe(args.i32())
    return Writer()


TABLE = {
    1: Procedure("CONNECT_OPEN", _open, True),
    2: Procedure("CONNECT_CLOSE", _nothing, True),
    3: Procedure("CONNECT_GET_TYPE", _type, True),
    4: Procedure("CONNECT_GET_VERSION", _version, True),
    5: Procedure("CONNECT_GET_MAX_VCPUS", _max_vcpus, True),
    6: Procedure("NODE_GET_INFO", _node_info, True),
    7: Procedure("CONNECT_GET_CAPABILITIES", _capabilities, True),
    59: Procedure("CONNECT_GET_HOSTNAME", _host_name, True),
    60: Procedure("CONNECT_SUPPORTS_FEATURE", _supports_feature, True),
    66: Procedure("AUTH_LIST", _auth_list, True),
    101: Procedure("NODE_GET_CELLS_FREE_MEMORY", _cells_free_memory, True),
    102: Procedure("NODE_GET_FREE_MEMORY", _free_memory, True),
    110: Procedure("CONNECT_GET_URI", _uri, True),
    122: Procedure("NODE_GET_SECURITY_MODEL", _no_security_model, True),
    149: Procedure("CONNECT_IS_SECURE", _is_secure, True),
    157: Procedure("CONNECT_GET_LIB_VERSION", _lib_version, True),
    228: Procedure("NODE_GET_MEMORY_STATS", _memory_figures, True),
    283: Procedure("CONNECT_LIST_ALL_NETWORKS", _empty_list, True),
    284: Procedure("CONNECT_LIST_ALL_INTERFACES", _empty_list, True),
    285: Procedure("CONNECT_LIST_ALL_NODE_DEVICES", _empty_list, True),
    286: Procedure("CONNECT_LIST_ALL_NWFILTERS", _empty_list, True),
    287: Procedure("CONNECT_LIST_ALL_SECRETS", _empty_list, True),
    293: Procedure("NODE_GET_CPU_MAP", _cpu_map, True),
    316: Procedure("CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY", _register_event, True),
    317: Procedure("CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY", _deregister_event, True),
    342: Procedure("CONNECT_GET_DOMAIN_CAPABILITIES", _domain_capabilities, True),
}
