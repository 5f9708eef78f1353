"""xend-config.sxp: every option of Xen 4.4 and our own, one row each.

Source: XendOptions.py and the shipped xend-config.sxp, Xen 3.0.2 - 4.4. The file is a sequence of
`(option value)` forms; the first one of a name wins, what is unknown is passed over. xendpy's own
options begin with `xendpy-`: a real xend does not look at them.

Unlike xend, every value is checked when the file is read, and all that is odd is reported with
its line.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from xendpy import sxp
from xendpy.config_values import (
    parse_bool,
    parse_choice,
    parse_count,
    parse_depth,
    parse_directories,
    parse_endpoint,
    parse_patterns,
    parse_port,
    parse_positive,
    parse_seconds,
    parse_str,
    parse_value,
)

PEER_OPTION = "xendpy-peer"
RELEASES = ("3.0", "3.1", "3.2", "3.4", "4.0", "4.1", "4.2+")
TOOL_BITS = ("32", "64")


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
    """`(xendpy-peer NAME (address A) (port P) (release R) (tools BITS))`; port 0 = the usual one."""

    name: str
    address: str
    port: int = 0
    release: str = "4.2+"
    tool_bits: int = 64


class MapKind(StrEnum):
    """What a mapping row renames in the configuration of a guest that comes in; the option."""

    BRIDGE = "xendpy-map-bridge"
    DISK = "xendpy-map-disk"
    SCRIPT = "xendpy-map-script"
    KERNEL = "xendpy-map-kernel"


# Rows that may be given for one thing after the other: their form, and what they say.
REPEATED = (
    (
        f"{PEER_OPTION} NAME (address A) (port P) (release R) (tools BITS)",
        "Another host by name, so that it needs no entry in /etc/hosts: its address, its port "
        "(0 = xend-relocation-port), and the dialect that an old xend there understands: its "
        f"release, one of {' '.join(RELEASES)}, and whether its tools have 32 or 64 bits, as "
        "`getconf LONG_BIT` says there. The address is NAME, the release is "
        f"{RELEASES[-1]} and the tools have {TOOL_BITS[-1]} bits where they are left out.",
    ),
    (
        f"{MapKind.BRIDGE} OLD NEW",
        "The bridge OLD of a guest that comes in is called NEW here (xl). OLD is '' for a vif that "
        "names none; without such a row it gets xenbr0, as xl has it.",
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
    tcp_xmlrpc_ssl_key: str = option("xend-tcp-xmlrpc-server-ssl-key-file", parse_str, "", "Key for XML-RPC over TLS, which is spoken in the place of plain TCP where both files are given; a name without / is below /etc/xen.")
    tcp_xmlrpc_ssl_cert: str = option("xend-tcp-xmlrpc-server-ssl-cert-file", parse_str, "", "Certificate for XML-RPC over TLS; a name without / is below /etc/xen.")
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
    vif_script: str = option("vif-script", parse_str, "vif-bridge", "Script in /etc/xen/scripts for the network interfaces of guests that are created here and name none.")
    external_migration_tool: str = option("external-migration-tool", parse_str, "", "Tool that xend ran, through a shell, for each device. Accepted, never run.")
    enable_dump: bool = option("enable-dump", parse_bool, False, "Dump crashed guests. Accepted, not done.")
    dom0_min_mem: int = option("dom0-min-mem", parse_count, 0, "MiB that dom0 keeps. Accepted, not used: domain 0 gives no memory away.")
    enable_dom0_ballooning: bool = option("enable-dom0-ballooning", parse_bool, True, "Take memory from dom0 for guests. Accepted, not done.")
    total_available_memory: int = option("total_available_memory", parse_count, 0, "GiB kept for 32-bit PV guests. Accepted, not used.")
    dom0_cpus: int = option("dom0-cpus", parse_count, 0, "Number of cpus of dom0; 0 = all. Accepted, not used.")
    console_limit: int = option("console-limit", parse_count, 1024, "KiB of console output kept. Accepted, not used.")
    vnc_listen: str = option("vnc-listen", parse_str, "127.0.0.1", "Default address of VNC servers. Accepted, not used: VNC listens on 127.0.0.1.")
    vncpasswd: str = option("vncpasswd", parse_str, "", "VNC password of guests that are created here and name none.")
    vnc_tls: str = option("vnc-tls", parse_str, "0", "TLS for VNC. Accepted, not used.")
    vnc_x509_cert_dir: str = option("vnc-x509-cert-dir", parse_str, "/etc/xen/vnc", "Certificates for VNC. Accepted, not used.")
    vnc_x509_verify: str = option("vnc-x509-verify", parse_str, "0", "Verify VNC clients. Accepted, not used.")
    keymap: str = option("keymap", parse_str, "", "VNC keymap of guests that are created here and name none.")
    resource_label_change_script: str = option("resource-label-change-script", parse_str, "", "Accepted, never run.")
    xsm_module_name: str = option("xsm_module_name", parse_str, "dummy", "Security module. Accepted, not used.")
    qemu_dm_logrotate_count: int = option("qemu-dm-logrotate-count", parse_count, 10, "Old device-model logs kept. Accepted, not used.")
    device_create_timeout: int = option("device-create-timeout", parse_count, 100, "Seconds that an incoming guest's devices may take. Accepted, not used.")
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
