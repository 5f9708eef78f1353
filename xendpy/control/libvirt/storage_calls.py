"""Procedures about storage: as much as virt-install needs to make a disk image file.

A pool is a directory. Pools live as long as the daemon: nothing but virt-install asks for them.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

from xendpy.control.libvirt.pools import Pool
from xendpy.control.libvirt.session import Handler, Procedure, Session
from xendpy.control.libvirt.wire import Code
from xendpy.control.libvirt.xdr import Reader, Writer
from xendpy.control.libvirt.xml_config import parse_xml
from xendpy.errors import RpcError

RUNNING, STOPPED = 2, 0  # virStoragePoolState
FILE, BLOCK = 0, 1  # virStorageVolType
MAX_POOLS = 64
_NAME = re.compile(r"[^/\x00]{1,255}")
_UNITS = {"B": 1, "BYTES": 1, "K": 1 << 10, "KIB": 1 << 10, "M": 1 << 20, "MIB": 1 << 20,
          "G": 1 << 30, "GIB": 1 << 30, "T": 1 << 40, "TIB": 1 << 40}  # fmt: skip


def _pool(session: Session, args: Reader) -> Pool:
    name, _uuid = args.pool()
    if name not in session.host.pools:
        raise RpcError(Code.NO_STORAGE_POOL, f"Storage pool not found: no pool '{name}'")
    return session.host.pools[name]


def _add_pool(writer: Writer, pool: Pool) -> Writer:
    return writer.string(pool.name).uuid(pool.uuid)


def _add_volume(writer: Writer, pool: Pool, name: str) -> Writer:
    return writer.string(pool.name).string(name).string(str(pool.path / name))


async def _list(session: Session, args: Reader) -> Writer:
    args.i32()
    flags = args.u32()
    pools = [
        pool
        for pool in session.host.pools.values()
        if not flags & 3 or flags & (2 if not pool.active else 1)
    ]
    writer = Writer().u32(len(pools))
    for pool in pools:
        _add_pool(writer, pool)
    return writer.u32(len(pools))


async def _define(session: Session, args: Reader) -> Writer:
    root = parse_xml(args.string(), "pool")
    name = (root.findtext("name") or "").strip()
    path = (root.findtext("target/path") or "").strip()
    if root.get("type") != "dir" or not _NAME.fullmatch(name) or not path.startswith("/"):
        raise RpcError(Code.NO_SUPPORT, "only pools of type dir, with name and path, are known")
    if len(session.host.pools) >= MAX_POOLS and name not in session.host.pools:
        raise RpcError(Code.OPERATION_FAILED, f"{MAX_POOLS} pools are defined")
    try:
        uuid = UUID(root.findtext("uuid") or str(uuid4()))
    except ValueError:
        raise RpcError(Code.INVALID_ARG, "the pool's uuid is none") from None
    pool = Pool(name, str(uuid), Path(path))
    session.host.pools[name] = pool
    return _add_pool(Writer(), pool)


async def _build(session: Session, args: Reader) -> Writer:
    pool = _pool(session, args)
    await session.guests.workers.quick(lambda: pool.path.mkdir(parents=True, exist_ok=True))
    return Writer()


def _activate(active: bool) -> Handler:
    async def handler(session: Session, args: Reader) -> Writer:
        pool = _pool(session, args)
        if active and not pool.path.is_dir():
            raise RpcError(Code.OPERATION_FAILED, f"{pool.path} is no directory")
        session.host.pools[pool.name] = replace(pool, active=active)
        return Writer()

    return handler


async def _nothing(session: Session, args: Reader) -> Writer:
    _pool(session, args)
    return Writer()


async def _forget(session: Session, args: Reader) -> Writer:
    del session.host.pools[_pool(session, args).name]
    return Writer()


async def _lookup(session: Session, args: Reader) -> Writer:
    name = args.string()
    if name not in session.host.pools:
        raise RpcError(Code.NO_STORAGE_POOL, f"no storage pool with matching name '{name}'")
    return _add_pool(Writer(), session.host.pools[name])


async def _info(session: Session, args: Reader) -> Writer:
    pool = _pool(session, args)
    usage = shutil.disk_usage(pool.path) if pool.path.is_dir() else None
    figures = (usage.total, usage.used, usage.free) if usage else (0, 0, 0)
    return Writer().i32(RUNNING if pool.active else STOPPED).u64(*figures)


async def _xml(session: Session, args: Reader) -> Writer:
    pool = _pool(session, args)
    text = (
        f"<pool type='dir'><name>{pool.name}</name><uuid>{pool.uuid}</uuid><source></source>"
        f"<target><path>{pool.path}</path></target></pool>"
    )
    return Writer().string(text)


async def _volume_count(session: Session, args: Reader) -> Writer:
    return Writer().i32(len(_pool(session, args).volumes()))


async def _volume_names(session: Session, args: Reader) -> Writer:
    return Writer().strings(_pool(session, args).volumes())


async def _list_volumes(session: Session, args: Reader) -> Writer:
    pool = _pool(session, args)
    names = pool.volumes()
    writer = Writer().u32(len(names))
    for name in names:
        _add_volume(writer, pool, name)
    return writer.u32(len(names))


async def _create_volume(session: Session, args: Reader) -> Writer:
    pool, root = _pool(session, args), parse_xml(args.string(), "volume")
    name = (root.findtext("name") or "").strip()
    capacity = root.find("capacity")
    text = (capacity.text or "").strip() if capacity is not None else ""
    unit = (capacity.get("unit") or "B").upper() if capacity is not None else "B"
    if (
        not _NAME.fullmatch(name)
        or name in (".", "..")
        or not text.isdigit()
        or unit not in _UNITS
    ):
        raise RpcError(Code.INVALID_ARG, "a volume needs a name and a capacity")
    kind = root.find("target/format")
    if kind is not None and kind.get("type") != "raw":
        raise RpcError(Code.ARGUMENT_UNSUPPORTED, "only raw volumes can be made")
    size = int(text) * _UNITS[unit]
    await session.guests.workers.quick(_make_file, pool.path / name, size)
    return _add_volume(Writer(), pool, name)


def _make_file(path: Path, size: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RpcError(Code.OPERATION_FAILED, f"{path}: {error.strerror}") from error
    try:
        os.truncate(fd, size)
    finally:
        os.close(fd)


def _volume(session: Session, args: Reader) -> tuple[Pool, Path]:
    pool_name, name, _key = args.volume()
    pool = session.host.pools.get(pool_name)
    if pool is None or name not in pool.volumes():
        raise RpcError(Code.NO_STORAGE_VOL, f"Storage volume not found: no volume '{name}'")
    return pool, pool.path / name


async def _volume_by_name(session: Session, args: Reader) -> Writer:
    pool, name = _pool(session, args), args.string()
    if name not in pool.volumes():
        raise RpcError(Code.NO_STORAGE_VOL, f"no storage vol with matching name '{name}'")
    return _add_volume(Writer(), pool, name)


async def _volume_by_path(session: Session, args: Reader) -> Writer:
    path = Path(args.string())
    for pool in session.host.pools.values():
        if pool.active and path.parent == pool.path and path.name in pool.volumes():
            return _add_volume(Writer(), pool, path.name)
    raise RpcError(Code.NO_STORAGE_VOL, f"no storage vol with matching path '{path}'")


async def _delete_volume(session: Session, args: Reader) -> Writer:
    _, path = _volume(session, args)
    await session.guests.workers.quick(path.unlink)
    return Writer()


async def _volume_info(session: Session, args: Reader) -> Writer:
    _, path = _volume(session, args)
    status = path.stat()
    return Writer().i32(FILE).u64(status.st_size, status.st_blocks * 512)


async def _volume_xml(session: Session, args: Reader) -> Writer:
    _, path = _volume(session, args)
    size = path.stat().st_size
    text = (
        f"<volume type='file'><name>{path.name}</name><key>{path}</key>"
        f"<capacity unit='bytes'>{size}</capacity><target><path>{path}</path>"
        f"<format type='raw'/></target></volume>"
    )
    return Writer().string(text)


async def _volume_path(session: Session, args: Reader) -> Writer:
    return Writer().string(str(_volume(session, args)[1]))


async def _pool_of_volume(session: Session, args: Reader) -> Writer:
    return _add_pool(Writer(), _volume(session, args)[0])


TABLE = {
    77: Procedure("STORAGE_POOL_DEFINE_XML", _define),
    78: Procedure("STORAGE_POOL_CREATE", _activate(True)),
    79: Procedure("STORAGE_POOL_BUILD", _build),
    80: Procedure("STORAGE_POOL_DESTROY", _activate(False)),
    82: Procedure("STORAGE_POOL_UNDEFINE", _forget),
    83: Procedure("STORAGE_POOL_REFRESH", _nothing),
    84: Procedure("STORAGE_POOL_LOOKUP_BY_NAME", _lookup, True),
    86: Procedure("STORAGE_POOL_LOOKUP_BY_VOLUME", _pool_of_volume, True),
    87: Procedure("STORAGE_POOL_GET_INFO", _info, True),
    88: Procedure("STORAGE_POOL_GET_XML_DESC", _xml, True),
    90: Procedure("STORAGE_POOL_SET_AUTOSTART", _nothing),
    91: Procedure("STORAGE_POOL_NUM_OF_VOLUMES", _volume_count, True),
    92: Procedure("STORAGE_POOL_LIST_VOLUMES", _volume_names, True),
    93: Procedure("STORAGE_VOL_CREATE_XML", _create_volume),
    94: Procedure("STORAGE_VOL_DELETE", _delete_volume),
    95: Procedure("STORAGE_VOL_LOOKUP_BY_NAME", _volume_by_name, True),
    97: Procedure("STORAGE_VOL_LOOKUP_BY_PATH", _volume_by_path, True),
    98: Procedure("STORAGE_VOL_GET_INFO", _volume_info, True),
    99: Procedure("STORAGE_VOL_GET_XML_DESC", _volume_xml, True),
    100: Procedure("STORAGE_VOL_GET_PATH", _volume_path, True),
    281: Procedure("CONNECT_LIST_ALL_STORAGE_POOLS", _list, True),
    282: Procedure("STORAGE_POOL_LIST_ALL_VOLUMES", _list_volumes, True),
}
