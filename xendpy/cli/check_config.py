"""`xend check-config`: say what the configuration file amounts to, and what is unwise in it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from xendpy import sxp
from xendpy.config import options
from xendpy.config_file import LoadedConfig, Warning, load
from xendpy.errors import ConfigError
from xendpy.paths import Paths
from xendpy.relocation.pki import RENEW_BEFORE, PkiError, read
from xendpy.relocation.tls import CA_OPTION, CERTIFICATE_OPTION, KEY_OPTION, TlsServer, named_file

EX_CONFIG = 78
SECRETS = ("vncpasswd",)  # the listing may end in a bug report
_NETWORK_FILE_SYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "fuse.glusterfs", "fuse.sshfs",
     "9p", "afs", "lustre")
)  # fmt: skip


def run(paths: Paths) -> int:
    """Print every option with its value and origin, then all warnings; return 0 or 78."""
    try:
        loaded = load(paths.config_file)
    except ConfigError as error:
        print(f"Error: {error}", file=sys.stderr)
        return EX_CONFIG
    print(f"# {paths.config_file}")
    for line in _listing(loaded):
        print(line)
    warnings = (*loaded.warnings, *check_environment(paths), *check_tls(loaded, paths))
    for warning in warnings:
        print(f"Warning: {warning.told(paths.config_file)}", file=sys.stderr)
    return 0


def _listing(loaded: LoadedConfig) -> Iterator[str]:
    for attribute, row, _ in options():
        line = loaded.origins.get(row.name)
        origin = f"line {line}" if line else "default"
        value = getattr(loaded.config, attribute)
        shown = "(hidden)" if value and row.name in SECRETS else sxp.show(_as_sxp(value))
        yield f"{f'({row.name} {shown})':<54} # {origin}"
    for mapped in loaded.config.maps:
        yield sxp.show([str(mapped.kind), mapped.old, mapped.new])
    for peer in loaded.config.peers:
        row_value: sxp.SxpList = [
            "xendpy-peer",
            peer.name,
            ["address", peer.address],
            ["port", peer.port],
            ["release", peer.release],
            ["tools", peer.tool_bits],
        ]
        yield sxp.show(row_value)


def _as_sxp(value: sxp.SxpValue) -> sxp.SxpValue:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            return value


def check_environment(
    paths: Paths, *, mounts: Path = Path("/proc/mounts"), exports: Path = Path("/etc/exports")
) -> list[Warning]:
    """Return what is unwise about where the state directory is.

    Two hosts that share it would take each other's guests for their own.
    """
    found = []
    state = paths.state_dir.resolve()
    kind = _file_system(state, mounts)
    if kind in _NETWORK_FILE_SYSTEMS:
        text = f"{state} is on a network file system ({kind}): two hosts must never share it"
        found.append(Warning(0, text))
    for exported in _exported(exports):
        if state.is_relative_to(exported):
            text = f"{state} is inside {exported}, which {exports} exports: export only the images"
            found.append(Warning(0, text))
    return found


def check_tls(
    loaded: LoadedConfig, paths: Paths, now: datetime | None = None
) -> Iterator[Warning]:
    """Yield what will keep TLS from working, and what is about to."""
    config, origins = loaded.config, loaded.origins
    try:
        TlsServer.of(config, paths)
    except ConfigError as error:
        yield Warning(origins.get(error.option) or 0, f"the daemon would not start: {error}")
    moment = now or datetime.now(UTC)
    named = (
        (config.relocation_ssl_cert, CERTIFICATE_OPTION),
        (config.relocation_tls_ca, CA_OPTION),
    )
    for name, option in named:
        if name:
            yield from _expiry(named_file(name, paths), origins.get(option) or 0, moment)
    key = named_file(config.relocation_ssl_key, paths)
    if config.relocation_ssl_key and key.exists() and key.stat().st_mode & 0o077:
        yield Warning(origins.get(KEY_OPTION) or 0, f"{key} can be read by others: chmod 600")
    if config.relocation_require_tls and not config.relocation_ssl_server:
        line = origins.get("xendpy-relocation-require-tls") or 0
        yield Warning(line, "no guest can come in: TLS is required and its server is off")


def _expiry(path: Path, line: int, now: datetime) -> Iterator[Warning]:
    try:
        certificate = read(path)
    except PkiError as error:
        yield Warning(line, str(error))
        return
    days = certificate.days_left(now)
    if days < 0:
        yield Warning(line, f"{path} expired on {certificate.not_after:%Y-%m-%d}")
    elif certificate.not_after - now < RENEW_BEFORE:
        yield Warning(line, f"{path} expires in {days} days: `xend pki renew`")


def _file_system(path: Path, mounts: Path) -> str:
    best, kind = "", ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, point, file_system, *_ = [*line.split(" "), "", ""]
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)
        # Of two mounts on one point the later one is on top.
        if point and path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, file_system
    return kind


def _exported(exports: Path) -> Iterator[Path]:
    try:
        lines = exports.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        match = re.match(r'\s*(?:"([^"]+)"|([^\s#"]+))', line)
        if match:
            yield Path(match[1] or match[2])
