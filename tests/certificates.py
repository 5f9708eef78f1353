"""Certificates for tests, and TLS clients that use them."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from xendpy.config import XendConfig
from xendpy.paths import Paths
from xendpy.relocation.pki import Pki


@dataclass
class Authority:
    """A CA below `root`, and what a host or a client of it needs."""

    root: Path

    def __post_init__(self) -> None:
        self.pki = Pki(self.root / "etc/xen/pki")
        self.pki.init("test CA", datetime.now(UTC))

    @property
    def paths(self) -> Paths:
        return Paths(self.root)

    def issue(self, host: str, *addresses: str) -> None:
        self.pki.issue(host, addresses, datetime.now(UTC))

    def config(self, host: str, *, ca: bool = True, **options: object) -> XendConfig:
        """Return a configuration with the certificate of `host`."""
        values: dict[str, object] = {
            "relocation_ssl_server": True,
            "relocation_ssl_port": 0,
            "relocation_ssl_key": f"/etc/xen/pki/{host}.key",
            "relocation_ssl_cert": f"/etc/xen/pki/{host}.pem",
            "relocation_tls_ca": "/etc/xen/pki/ca.pem" if ca else "",
            **options,
        }
        return XendConfig(**values)  # type: ignore[arg-type]  # the names are those of the options

    def client(self, host: str = "") -> ssl.SSLContext:
        """Return a client's context that trusts this CA, with the certificate of `host`."""
        context = ssl.create_default_context(cafile=self.pki.certificate_file("ca"))
        context.check_hostname = False
        if host:
            context.load_cert_chain(self.pki.certificate_file(host), self.pki.key_file(host))
        return context


def old_client() -> ssl.SSLContext:
    """Return the context of a xend: it verifies nothing and shows nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def dial(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Connect over TLS, the handshake included."""
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=40))
