"""xend-config.sxp: every option of Xen 4.4 and our own, one row each, and how the file is read.

Source: XendOptions.py and the shipped xend-config.sxp, Xen 3.0.2 - 4.4. The file is a sequence of
`(option value)` forms; the first one of a name wins, what is unknown is passed over. xendpy's own
options begin with `xendpy-`: a real xend does not look at them.

Unlike xend, every value is checked when the file is read, and all that is odd is reported with
its line.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from xendpy import sxp
from xendpy.errors import ConfigError, SxpError

_TRUE = frozenset(("yes", "y", "1", "on", "true", "t"))
_FALSE = frozenset(("no", "n", "0", "off", "false", "f"))
PEER_OPTION = "xendpy-peer"
RELEASES = ("3.0", "3.1", "3.2", "3.4", "4.0", "4.1", "4.2+")


def parse_bool(value: sxp.SxpValue) -> bool:
    """Return a boolean in any of xend's spellings."""
    word = value.lower() if isinstance(value, str) else ""
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"expected bool: {_said(value)}")


def parse_int(value: sxp.SxpValue) -> int:
    """Return a decimal number."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value):
        return int(value)
    raise ValueError(f"expected int: {_said(value)}")


def parse_count(value: sxp.SxpValue) -> int:
    """Return a number that is not negative."""
    number = parse_int(value)
    if number < 0:
        raise ValueError(f"expected a number from 0 up: {number}")
    return number


def parse_positive(value: sxp.SxpValue) -> int:
    """Return a number above 0."""
    number = parse_int(value)
    if number < 1:
        raise ValueError(f"expected a number from 1 up: {number}")
    return number


def parse_depth(value: sxp.SxpValue) -> int:
    """Return how deep lists may be nested, which the parser bounds as well."""
    depth = parse_positive(value)
    if depth > sxp.DEEPEST:
        raise ValueError(f"expected a number up to {sxp.DEEPEST}: {depth}")
    return depth


def parse_seconds(value: sxp.SxpValue) -> float:
    """Return a time in seconds, not negative."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}(\.\d{1,6})?", value):
        return float(value)
    raise ValueError(f"expected seconds: {_said(value)}")


def parse_port(value: sxp.SxpValue) -> int:
    """Return a TCP port; 0 lets the system choose one."""
    port = parse_int(value)
    if not 0 <= port <= 65535:
        raise ValueError(f"expected a port from 0 to 65535: {port}")
    return port


def parse_str(value: sxp.SxpValue) -> str:
    """Return a string."""
    if isinstance(value, str):
        return value
    raise ValueError(f"expected a string: {_said(value)}")


def parse_value(value: sxp.SxpValue) -> sxp.SxpValue:
    """Return any s-expression as it is."""
    return value


def parse_patterns(value: sxp.SxpValue) -> str:
    """Return a hosts-allow value all of whose patterns compile and none of which is empty."""
    text = parse_str(value)
    split_patterns(text)
    return text


def parse_directories(value: sxp.SxpValue) -> str:
    """Return absolute directories, separated by spaces, as they are."""
    text = parse_str(value)
    for path in text.split():
        if not path.startswith("/") or path == "/":
            raise ValueError(f"expected directories other than /: {_said(path)}")
    return text


def parse_endpoint(value: sxp.SxpValue) -> str:
    """Return `ADDRESS:PORT` as it is; empty = none."""
    text = parse_str(value)
    address, colon, port = text.rpartition(":")
    if text and not (address and colon and re.fullmatch(r"\d{1,5}", port) and int(port) < 65536):
        raise ValueError(f"expected ADDRESS:PORT: {_said(value)}")
    return text


def parse_choice(*choices: str) -> Callable[[sxp.SxpValue], str]:
    """Return a parser that takes one of `choices`."""

    def parse(value: sxp.SxpValue) -> str:
        if value in choices:
            return str(value)
        raise ValueError(f"expected one of {', '.join(choices)}: {_said(value)}")

    return parse


def _said(value: sxp.SxpValue) -> str:
    return value if isinstance(value, str) and value else sxp.show(value)


def split_patterns(text: str) -> tuple[str, ...]:
    """Return the patterns of a hosts-allow value, which xend splits at single spaces.

    Raises:
        ValueError: one is empty, which would let every host in, or is no regular expression.
    """
    if not text:
        return ()
    patterns = tuple(text.split(" "))
    if "" in patterns:
        raise ValueError(
            "an empty pattern, which would let every host in: "
            "remove the double, leading or trailing space"
        )
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return patterns


@dataclass(frozen=True, slots=True)
class Option:
    """One row: the name in the file, how its value is read, its default, what it is for."""

    name: str
    parse: Callable[[sxp.SxpValue], Any]
    default: Any
    doc: str


def option(
    name: str, parse: Callable[[sxp.SxpValue], Any], default: Any, doc: str
) -> Any:  # a dataclass field: its type is the annotation's
    """Return the field for one option."""
    metadata = {"option": Option(name, parse, default, doc)}
    if isinstance(default, list):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class PeerRow:
    """`(xendpy-peer NAME (address A) (port P) (release R))`; port 0 = the usual one."""

    name: str
    address: str
    port: int = 0
    release: str = "4.2+"


class MapKind(StrEnum):
    """What a mapping row renames in the configuration of a guest that comes in; the option."""

    BRIDGE = "xendpy-map-bridge"
    DISK = "xendpy-map-disk"
    SCRIPT = "xendpy-map-script"
    KERNEL = "xendpy-map-kernel"


# Rows that may be given for one thing after the other: their form, and what they say.
REPEATED = (
    (
        f"{PEER_OPTION} NAME (address A) (port P) (release R)",
        "Another host by name, so that it needs no entry in /etc/hosts: its address, its port "
        "(0 = xend-relocation-port), and the dialect that an old xend there understands, one of "
        f"{' '.join(RELEASES)}. The address is NAME and the release {RELEASES[-1]} where they "
        "are left out.",
    ),
    (
        f"{MapKind.BRIDGE} OLD NEW",
        "The bridge OLD of a guest that comes in is called NEW here (xl).",
    ),
    (
        f"{MapKind.DISK} OLD NEW",
        "The disk OLD of a guest that comes in, or each disk below the directory OLD, is NEW or "
        "below NEW here (xl).",
    ),
    (
        f"{MapKind.SCRIPT} OLD NEW",
        "The network script OLD of a guest that comes in is NEW here; file names without a "
        "directory (xl).",
    ),
    (f"{MapKind.KERNEL} OLD NEW", "As xendpy-map-disk, for kernels and ramdisks (xl)."),
)


@dataclass(frozen=True, slots=True)
class MapRow:
    """`(xendpy-map-KIND OLD NEW)`: names are replaced whole, paths by their beginning."""

    kind: MapKind
    old: str
    new: str


# A table is read across: the rows stay on their lines.
# ruff: noqa: E501, RUF009
# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class XendConfig:
    """All options with their values; the rows are the one place that knows them."""

    # xend's own
    logfile: str = option("logfile", parse_str, "/var/log/xen/xend.log", "Log file, rotated at 1 MiB, 5 old ones kept.")
    loglevel: str = option("loglevel", parse_choice("TRACE", "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL"), "DEBUG", "Least severe level that is logged.")
    xen_api_server: sxp.SxpValue = option("xen-api-server", parse_value, [["unix"]], "Listeners of the Xen-API. Accepted, not served.")
    http_server: bool = option("xend-http-server", parse_bool, False, "Deprecated HTTP server. Accepted, not served.")
    unix_server: bool = option("xend-unix-server", parse_bool, False, "Open the local relocation socket DIR/var/lib/xend/relocation-socket.")
    unix_path: str = option("xend-unix-path", parse_str, "/var/lib/xend/xend-socket", "Socket of the deprecated HTTP server. Accepted, not served.")
    tcp_xmlrpc_server: bool = option("xend-tcp-xmlrpc-server", parse_bool, False, "Serve XML-RPC over TCP, behind xend-relocation-hosts-allow.")
    tcp_xmlrpc_address: str = option("xend-tcp-xmlrpc-server-address", parse_str, "localhost", "Address of the XML-RPC server over TCP.")
    tcp_xmlrpc_port: int = option("xend-tcp-xmlrpc-server-port", parse_port, 8006, "Port of the XML-RPC server over TCP.")
    tcp_xmlrpc_ssl_key: str = option("xend-tcp-xmlrpc-server-ssl-key-file", parse_str, "", "Key for XML-RPC over TLS. Accepted, not served.")
    tcp_xmlrpc_ssl_cert: str = option("xend-tcp-xmlrpc-server-ssl-cert-file", parse_str, "", "Certificate for XML-RPC over TLS. Accepted, not served.")
    unix_xmlrpc_server: bool = option("xend-unix-xmlrpc-server", parse_bool, True, "Serve XML-RPC on DIR/var/run/xend/xmlrpc.sock, for xm.")
    relocation_server: bool = option("xend-relocation-server", parse_bool, False, "Listen for incoming migrations.")
    relocation_ssl_server: bool = option("xend-relocation-ssl-server", parse_bool, False, "Listen for incoming migrations over TLS.")
    relocation_port: int = option("xend-relocation-port", parse_port, 8002, "Port of the relocation server, and default port of this host's own migrations.")
    relocation_ssl_port: int = option("xend-relocation-ssl-port", parse_port, 8003, "The same over TLS.")
    relocation_ssl: bool = option("xend-relocation-ssl", parse_bool, False, "Send over TLS unless told otherwise.")
    relocation_ssl_key: str = option("xend-relocation-server-ssl-key-file", parse_str, "", "Key of the TLS relocation server; a name without / is below /etc/xen.")
    relocation_ssl_cert: str = option("xend-relocation-server-ssl-cert-file", parse_str, "", "Certificate of the TLS relocation server; a name without / is below /etc/xen.")
    relocation_address: str = option("xend-relocation-address", parse_str, "", "Address, host name or interface to listen on; empty = every IPv4 interface. Outgoing migrations leave from it.")
    relocation_hosts_allow: str = option("xend-relocation-hosts-allow", parse_patterns, "", "Regular expressions, separated by single spaces; a peer whose name or address matches one from its start is let in. Empty = everybody.")
    udev_event_server: bool = option("xend-udev-event-server", parse_bool, False, "Listen for udev events. Accepted, not served.")
    http_port: int = option("xend-port", parse_port, 8000, "Port of the deprecated HTTP server. Accepted, not served.")
    http_address: str = option("xend-address", parse_str, "", "Address of the deprecated HTTP server. Accepted, not served.")
    domains_path: str = option("xend-domains-path", parse_str, "/var/lib/xend/domains", "Where the configurations of managed domains are kept.")
    state_path: str = option("xend-state-path", parse_str, "/var/lib/xend/state", "xend's own state. Accepted, not used.")
    storage_path: str = option("xend-storage-path", parse_str, "/var/lib/xend/storage", "xend's image repository. Accepted, not used.")
    security_path: str = option("xend-security-path", parse_str, "/var/lib/xend/security", "xend's security policies. Accepted, not used.")
    network_script: str = option("network-script", parse_str, "", "Script that sets up the bridge at start. Accepted, not run: the host's own network set-up does it.")
    vif_script: str = option("vif-script", parse_str, "vif-bridge", "Default script for network interfaces.")
    external_migration_tool: str = option("external-migration-tool", parse_str, "", "Tool that xend ran, through a shell, for each device. Accepted, never run.")
    enable_dump: bool = option("enable-dump", parse_bool, False, "Dump crashed guests. Accepted, not done.")
    dom0_min_mem: int = option("dom0-min-mem", parse_count, 0, "MiB that dom0 keeps.")
    enable_dom0_ballooning: bool = option("enable-dom0-ballooning", parse_bool, True, "Take memory from dom0 for guests.")
    total_available_memory: int = option("total_available_memory", parse_count, 0, "GiB kept for 32-bit PV guests. Accepted, not used.")
    dom0_cpus: int = option("dom0-cpus", parse_count, 0, "Number of cpus of dom0; 0 = all. Accepted, not used.")
    console_limit: int = option("console-limit", parse_count, 1024, "KiB of console output kept. Accepted, not used.")
    vnc_listen: str = option("vnc-listen", parse_str, "127.0.0.1", "Default address of VNC servers.")
    vncpasswd: str = option("vncpasswd", parse_str, "", "Default VNC password.")
    vnc_tls: str = option("vnc-tls", parse_str, "0", "TLS for VNC. Accepted, not used.")
    vnc_x509_cert_dir: str = option("vnc-x509-cert-dir", parse_str, "/etc/xen/vnc", "Certificates for VNC. Accepted, not used.")
    vnc_x509_verify: str = option("vnc-x509-verify", parse_str, "0", "Verify VNC clients. Accepted, not used.")
    keymap: str = option("keymap", parse_str, "", "Default VNC keymap.")
    resource_label_change_script: str = option("resource-label-change-script", parse_str, "", "Accepted, never run.")
    xsm_module_name: str = option("xsm_module_name", parse_str, "dummy", "Security module. Accepted, not used.")
    qemu_dm_logrotate_count: int = option("qemu-dm-logrotate-count", parse_count, 10, "Old device-model logs kept. Accepted, not used.")
    device_create_timeout: int = option("device-create-timeout", parse_count, 100, "Seconds that an incoming guest's devices may take.")
    device_destroy_timeout: int = option("device-destroy-timeout", parse_count, 100, "Seconds that devices may take to go. Accepted, not used.")
    pci_passthrough_strict_check: bool = option("pci-passthrough-strict-check", parse_bool, True, "Accepted, not used.")
    pscsi_device_mask: sxp.SxpValue = option("pscsi-device-mask", parse_value, ["*"], "Accepted, not used.")

    # xendpy's own
    hypervisor: str = option("xendpy-hypervisor", parse_choice("auto", "xl", "store"), "auto", "What runs the guests: xl, the embedded store, or xl where there is a Xen.")
    host_name: str = option("xendpy-host-name", parse_str, "", "This host's name for guests and peers; empty = the system's.")
    relocation_tls_ca: str = option("xendpy-relocation-tls-ca", parse_str, "", "Certificates that vouch for other xendpy hosts over TLS; a name without / is below /etc/xen.")
    relocation_tls_verify: str = option("xendpy-relocation-tls-verify", parse_choice("auto", "required", "optional", "none"), "auto", "Whether a peer over TLS must show a certificate of that CA. auto: required where a CA is named, none where not (xend's own senders have none).")
    relocation_tls_min: str = option("xendpy-relocation-tls-min", parse_choice("1.0", "1.1", "1.2", "1.3"), "1.2", "Oldest TLS version taken from a xend; xendpy hosts speak 1.3 with each other.")
    relocation_require_tls: bool = option("xendpy-relocation-require-tls", parse_bool, False, "Keep the plain relocation port closed and send over TLS only.")
    relocation_forward_confirm: bool = option("xendpy-relocation-forward-confirm", parse_bool, True, "A peer's name from reverse DNS counts only if it leads back to the peer's address. no: xend's way.")
    relocation_guests_allow: str = option("xendpy-relocation-guests-allow", parse_patterns, "", "Regular expressions, separated by single spaces; a guest whose whole name or uuid one matches may come in. Empty = every guest.")
    metrics_address: str = option("xendpy-metrics-address", parse_endpoint, "", "ADDRESS:PORT where Prometheus finds the metrics; empty = nowhere.")
    max_device_model: int = option("xendpy-max-device-model", parse_positive, 128, "MiB of a HVM guest's device-model state.")
    max_connections: int = option("xendpy-max-connections", parse_positive, 256, "Connections to the relocation port at a time.")
    max_connections_per_peer: int = option("xendpy-max-connections-per-peer", parse_positive, 64, "The same from one address.")
    max_incoming: int = option("xendpy-max-incoming", parse_positive, 8, "Incoming migrations at a time.")
    max_config_bytes: int = option("xendpy-max-config-bytes", parse_positive, 1 << 20, "Size of a guest's configuration.")
    max_sxp_depth: int = option("xendpy-max-sxp-depth", parse_depth, 64, "How deep a guest's configuration may be nested, 200 at most.")
    max_guest_memory: int = option("xendpy-max-guest-memory", parse_count, 0, "MiB that an incoming guest may have; 0 = as much as there is.")
    control_timeout_s: float = option("xendpy-control-timeout", parse_seconds, 30.0, "Seconds that a peer has to ask for something.")
    stall_timeout_s: float = option("xendpy-stall-timeout", parse_seconds, 60.0, "Seconds without a byte after which a migration has failed.")
    dns_timeout_s: float = option("xendpy-dns-timeout", parse_seconds, 5.0, "Seconds that the look-up of a peer's name may take.")
    eof_timeout_s: float = option("xendpy-eof-timeout", parse_seconds, 300.0, "Seconds to wait for an old sender to close; without that its guest stays paused.")
    stop_while_moving: str = option("xendpy-stop-while-moving", parse_choice("drain", "cut", "refuse"), "drain", "What becomes of guests on their way when the daemon is told to stop. drain: they arrive first; cut: they stay where they are, except those that are being handed over; refuse: `xend stop` and `xend restart` do nothing, and a signal drains.")
    drain_timeout_s: float = option("xendpy-drain-timeout", parse_seconds, 600.0, "Seconds that a stopping daemon waits for migrations; 0 = as long as they take.")
    unpause_delay_s: float = option("xendpy-unpause-delay", parse_seconds, 1.0, "Seconds between an old sender's close and the guest's start here: xend 4.1 and later destroys its copy just after closing.")
    verdict_timeout_s: float = option("xendpy-verdict-timeout", parse_seconds, 300.0, "Seconds to wait for a peer's answer after the last byte.")
    libvirt_server: bool = option("xendpy-libvirt-server", parse_bool, True, "Serve virsh on libvirt's unix sockets.")
    libvirt_tcp_server: bool = option("xendpy-libvirt-tcp-server", parse_bool, False, "Serve virsh over TCP, unencrypted, behind xend-relocation-hosts-allow.")
    libvirt_tcp_address: str = option("xendpy-libvirt-tcp-address", parse_str, "", "Address of that server; empty = every IPv4 interface.")
    libvirt_tcp_port: int = option("xendpy-libvirt-tcp-port", parse_port, 16509, "Port of that server.")
    on_no_logdirty: str = option("xendpy-on-no-logdirty", parse_choice("refuse", "pause"), "refuse", "A live migration of a guest whose hypervisor keeps no log of dirty pages (xl): refuse it, or pause the guest while it is sent.")
    guest_paths: str = option("xendpy-guest-paths", parse_directories, "/var/lib/libvirt/images /var/lib/xen/images /dev", "Directories, separated by spaces, below which the disks and kernels of guests that come in must lie (xl).")
    peers: tuple[PeerRow, ...] = ()
    maps: tuple[MapRow, ...] = ()
    # fmt: on

    def peer(self, name: str) -> PeerRow | None:
        """Return the row of the peer called `name`."""
        return next((row for row in self.peers if row.name == name), None)


def options() -> Iterator[tuple[str, Option, Any]]:
    """Yield (attribute, row, default) of every option, in the table's order."""
    for item in fields(XendConfig):
        row = item.metadata.get("option")
        if row is not None:
            yield item.name, row, row.default


@dataclass(frozen=True, slots=True)
class Warning:
    """Something in the file that an operator should look at; line 0 = the file as a whole."""

    line: int
    text: str

    def told(self, path: Path) -> str:
        """Return the warning as one line, with the place in the file `path`."""
        return f"{path}:{self.line}: {self.text}" if self.line else f"{path}: {self.text}"


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, the line each option came from (None = its default), and the warnings."""

    config: XendConfig
    path: Path
    origins: dict[str, int | None]
    warnings: tuple[Warning, ...]


def load(path: Path) -> LoadedConfig:
    """Read a configuration file; one that does not exist means all defaults, and a warning.

    Raises:
        ConfigError: the file cannot be read or parsed, or a value is impossible; with its line.
    """
    try:
        text = path.read_bytes().decode("latin-1")
    except FileNotFoundError:
        missing = Warning(0, "the file does not exist: all options have defaults")
        origins: dict[str, int | None] = {row.name: None for _, row, _ in options()}
        return LoadedConfig(XendConfig(), path, origins, (missing,))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=str(path)) from error
    return parse(text, path)


def parse(text: str, path: Path) -> LoadedConfig:
    """Return the configuration that `text`, the contents of `path`, holds; errors as `load`."""
    try:
        forms, oddities = sxp.parse_forms(text)
    except SxpError as error:
        reason = f"{error.reason} (column {error.column})"
        raise ConfigError(reason, path=str(path), line=error.line) from error
    warnings = [Warning(oddity.line, oddity.text) for oddity in oddities]
    reader = _Reader(path, warnings)
    for form in forms:
        reader.take(form)
    config = XendConfig(
        **reader.values, peers=tuple(reader.peers.values()), maps=tuple(reader.maps.values())
    )
    warnings += [*_advice(config, reader.origins), *_without_effect(config, reader.origins)]
    return LoadedConfig(
        config, path, reader.origins, tuple(sorted(warnings, key=lambda item: item.line))
    )


class _Reader:
    # Collects the forms of one file into values, origins and warnings.

    def __init__(self, path: Path, warnings: list[Warning]) -> None:
        self._path = path
        self._warnings = warnings
        self._rows = {row.name: (attribute, row) for attribute, row, _ in options()}
        self.values: dict[str, Any] = {}
        self.peers: dict[str, PeerRow] = {}
        self.maps: dict[tuple[str, str], MapRow] = {}
        self.origins: dict[str, int | None] = dict.fromkeys(self._rows)
        self._first: dict[str, int] = {}

    def take(self, form: sxp.Form) -> None:
        value = form.value
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            self._warn(form, f"{sxp.show(value)} is no (option value): ignored")
            return
        name = value[0]
        if name == PEER_OPTION:
            self._peer(form, value)
        elif name in MapKind.__members__.values():
            self._map(form, MapKind(name), value)
        elif name not in self._rows:
            self._warn(form, f"unknown option {name}: ignored")
        elif name in self._first:
            first = self._first[name]
            self._warn(form, f"{name} is given again: the first one, line {first}, counts")
        else:
            self._first[name] = form.line
            self._set(form, name, value)

    def _set(self, form: sxp.Form, name: str, value: sxp.SxpList) -> None:
        attribute, row = self._rows[name]
        if len(value) == 1:
            self._warn(form, f"{name} has no value: its default counts")
            return
        if len(value) > 2:
            rest = " ".join(sxp.show(item) for item in value[2:])
            self._warn(form, f"{name} takes one value; ignored: {rest}")
        try:
            self.values[attribute] = row.parse(value[1])
        except ValueError as error:
            raise self._error(form, name, str(error)) from error
        self.origins[name] = form.line

    def _peer(self, form: sxp.Form, value: sxp.SxpList) -> None:
        name = value[1] if len(value) > 1 else None
        address = sxp.child_value(value, "address", name)
        release = sxp.child_value(value, "release", RELEASES[-1])
        if not isinstance(name, str) or not name or not isinstance(address, str):
            raise self._error(
                form, PEER_OPTION, "expected NAME (address A) (port P) (release R)"
            )
        if release not in RELEASES:
            raise self._error(
                form, PEER_OPTION, f"release must be one of {', '.join(RELEASES)}"
            )
        try:
            port = parse_port(sxp.child_value(value, "port", "0"))
        except ValueError as error:
            raise self._error(form, PEER_OPTION, str(error)) from error
        if name in self.peers:
            self._warn(form, f"{PEER_OPTION} {name} is given again: the first one counts")
        else:
            self.peers[name] = PeerRow(name, address, port, str(release))

    def _map(self, form: sxp.Form, kind: MapKind, value: sxp.SxpList) -> None:
        match value:
            case [_, str(old), str(new)] if old and new:
                if (kind, old) in self.maps:
                    self._warn(form, f"{kind} {old} is given again: the first one counts")
                self.maps.setdefault((kind, old), MapRow(kind, old, new))
            case _:
                raise self._error(form, kind, "expected OLD NEW")

    def _warn(self, form: sxp.Form, text: str) -> None:
        self._warnings.append(Warning(form.line, text))

    def _error(self, form: sxp.Form, name: str, reason: str) -> ConfigError:
        return ConfigError(reason, path=str(self._path), line=form.line, option=name)


def _advice(config: XendConfig, origins: Mapping[str, int | None]) -> Iterator[Warning]:
    """Yield what is allowed and still unwise."""
    line = origins["xend-relocation-hosts-allow"] or 0
    if (config.relocation_server or config.relocation_ssl_server) and not (
        config.relocation_hosts_allow
    ):
        yield Warning(
            line,
            "the relocation server is on and xend-relocation-hosts-allow is empty: "
            "every host that reaches the port may send guests",
        )
    for pattern in split_patterns(config.relocation_hosts_allow):
        if not re.search(r"(?<!\\)(\\\\)*\$$", pattern):
            yield Warning(
                line, f"pattern {pattern} does not end in $: it matches longer names as well"
            )
        if not pattern.isprintable():
            yield Warning(
                line,
                f"pattern {sxp.show(pattern)} holds a control character and matches no host: "
                "write each backslash twice",
            )


def _without_effect(config: XendConfig, origins: Mapping[str, int | None]) -> Iterator[Warning]:
    """Yield the options of xend that were changed and do nothing here; their rows say so."""
    for attribute, row, default in options():
        line = origins[row.name]
        effect = re.search(r"Accepted, (n\w+ \w+)", row.doc)
        if line and effect and getattr(config, attribute) != default:
            yield Warning(line, f"{row.name} has no effect: it is accepted, {effect[1]}")
