"""TLS on the relocation port: contexts, and who the peer is by its certificate.

A xend's own sender (3.3 - 4.4, XendDomain.py and connection.py) shows no certificate, verifies
none, and closes without close_notify; it may speak old versions only. xendpy hosts speak TLS 1.3
with each other, and each verifies the other against one CA.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xendpy.config import XendConfig
from xendpy.errors import ChannelError, ChannelTimeout, ConfigError, TlsTooOld
from xendpy.paths import Paths

log = logging.getLogger(__name__)

KEY_OPTION = "xend-relocation-server-ssl-key-file"
CERTIFICATE_OPTION = "xend-relocation-server-ssl-cert-file"
CA_OPTION = "xendpy-relocation-tls-ca"
VERIFY_OPTION = "xendpy-relocation-tls-verify"

_VERSIONS: Mapping[str, ssl.TLSVersion] = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}
_VERIFY: Mapping[str, ssl.VerifyMode] = {
    "required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
}
# OpenSSL's reasons; one that knows nothing of TLS 1.3 finds no cipher of its own in the offer.
_TOO_OLD = (
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
)


@dataclass(frozen=True, slots=True)
class Identity:
    """What is known of a peer by TLS.

    `alternatives` are the DNS names and addresses that its verified certificate is for, `names`
    its DNS names and common name; `verified` is false without a certificate.
    """

    version: str
    verified: bool = False
    alternatives: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsServer:
    """The listening side; `verifies`: a peer that shows a certificate is held against the CA."""

    context: ssl.SSLContext
    config: XendConfig
    paths: Paths
    stamps: tuple[int, ...]  # of its files as they were loaded

    @property
    def port(self) -> int:
        return self.config.relocation_ssl_port

    @property
    def verifies(self) -> bool:
        return self.context.verify_mode is not ssl.CERT_NONE

    @classmethod
    def of(cls, config: XendConfig, paths: Paths) -> TlsServer | None:
        """Return what the configuration wants, None unless xend-relocation-ssl-server is on.

        Raises:
            ConfigError: a file is missing or unusable, or nobody vouches for peers that must
                show a certificate.
        """
        if not config.relocation_ssl_server:
            return None
        stamps = _stamps(config, paths)  # before: a file that changes meanwhile is read again
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _set_oldest(context, config.relocation_tls_min)
        # A ticket is of no use to a peer that comes once, and looks like payload to `select`.
        context.num_tickets = 0
        _load_own(context, config, paths, needed=True)
        context.verify_mode = _verify_mode(config)
        if context.verify_mode is not ssl.CERT_NONE:
            _load_ca(context, config, paths)
        return cls(context=context, config=config, paths=paths, stamps=stamps)

    def current(self) -> TlsServer:
        """Return what its files say by this moment: a renewed certificate counts at once.

        Files that do not fit together, as while they are being replaced, leave it as it is.
        """
        stamps = _stamps(self.config, self.paths)
        if stamps == self.stamps:
            return self
        try:
            return TlsServer.of(self.config, self.paths) or self
        except ConfigError as error:
            log.warning("TLS goes on with the certificate that it has: %s", error)
            return replace(self, stamps=stamps)


def _stamps(config: XendConfig, paths: Paths) -> tuple[int, ...]:
    names = (config.relocation_ssl_key, config.relocation_ssl_cert, config.relocation_tls_ca)
    return tuple(_stamp(named_file(name, paths)) for name in names if name)


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_ctime_ns
    except OSError:
        return 0


def client_context(config: XendConfig, paths: Paths) -> ssl.SSLContext:
    """Return the context of migrations that go out to other xendpy hosts.

    The certificate is verified unless the configuration says none; whose it is, is checked by
    `check_name`. This host's own is shown if it has one.

    Raises:
        ConfigError: nobody vouches for peers, or a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    _load_own(context, config, paths, needed=False)
    if config.relocation_tls_verify == "none":
        context.verify_mode = ssl.CERT_NONE
        return context
    if not config.relocation_tls_ca:
        raise ConfigError(
            "not set: without a CA nobody can tell who answers; make one with `xend pki init`,"
            f" or give up the check with ({VERIFY_OPTION} none)",
            option=CA_OPTION,
        )
    _load_ca(context, config, paths)
    return context


def _verify_mode(config: XendConfig) -> ssl.VerifyMode:
    wanted, ca = config.relocation_tls_verify, config.relocation_tls_ca
    if wanted == "auto":
        return ssl.CERT_REQUIRED if ca else ssl.CERT_NONE
    if wanted != "none" and not ca:
        raise ConfigError(f"{wanted}, but {CA_OPTION} is not set", option=VERIFY_OPTION)
    return _VERIFY[wanted]


def _set_oldest(context: ssl.SSLContext, oldest: str) -> None:
    with warnings.catch_warnings():
        # Asked for by name in the configuration, for peers of 2008.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = _VERSIONS[oldest]
    if oldest in ("1.0", "1.1"):
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # their handshakes are signed with SHA-1


def _load_own(context: ssl.SSLContext, config: XendConfig, paths: Paths, *, needed: bool) -> None:
    key, certificate = config.relocation_ssl_key, config.relocation_ssl_cert
    if not key and not certificate and not needed:
        return
    for name, option in ((key, KEY_OPTION), (certificate, CERTIFICATE_OPTION)):
        if not name:
            raise ConfigError("not set, and TLS needs key and certificate", option=option)
        readable(named_file(name, paths), option)
    try:
        # An empty password instead of a question on the terminal.
        context.load_cert_chain(named_file(certificate, paths), named_file(key, paths), "")
    except (OSError, ValueError) as error:
        text = f"{named_file(key, paths)} and {named_file(certificate, paths)} cannot be used: "
        raise ConfigError(text + _reason(error), option=KEY_OPTION) from error


def _load_ca(context: ssl.SSLContext, config: XendConfig, paths: Paths) -> None:
    file = named_file(config.relocation_tls_ca, paths)
    readable(file, CA_OPTION)
    try:
        context.load_verify_locations(cafile=file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be used: {_reason(error)}", option=CA_OPTION) from error


def named_file(name: str, paths: Paths) -> Path:
    """Return a file that the configuration names; without a slash it is below /etc/xen."""
    return paths.below(name) if "/" in name else paths.config_dir / name


def readable(path: Path, option: str) -> None:
    """Raise ConfigError unless the file can be read: OpenSSL does not say which one it was."""
    try:
        path.open("rb").close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{path} cannot be read: {reason}", option=option) from error


def wrap(
    sock: socket.socket, context: ssl.SSLContext, *, server_name: str | None = None
) -> ssl.SSLSocket:
    """Return `sock` as a TLS socket whose handshake is still to come; does no I/O.

    `server_name` None = this is the server's side. `sock` itself is empty afterwards.

    Raises:
        OSError: the peer is gone already.
    """
    return context.wrap_socket(
        sock,
        server_side=server_name is None,
        do_handshake_on_connect=False,
        # Address literals are not allowed in the TLS extension that says whom the client means.
        server_hostname=None if server_name is None or _address(server_name) else server_name,
    )


def shake_hands(sock: ssl.SSLSocket, timeout_s: float, peer: str) -> Identity:
    """Do the handshake within `timeout_s` in all, and return who the peer is. Blocking.

    Raises:
        ChannelTimeout: the peer took longer.
        TlsTooOld: it speaks no version that this side may speak.
        ChannelError: it failed; the text is OpenSSL's.
    """
    try:
        sock.settimeout(max(timeout_s, 0.001))
        sock.do_handshake()
        certificate = sock.getpeercert() or {}
    except TimeoutError as error:
        raise ChannelTimeout("shaking hands over TLS", after_s=timeout_s, peer=peer) from error
    except (OSError, ValueError) as error:
        kind = TlsTooOld if getattr(error, "reason", "") in _TOO_OLD else ChannelError
        raise kind(f"TLS: {_reason(error)}", peer=peer) from error
    return identify(sock.version() or "", certificate)


def identify(version: str, certificate: Mapping[str, Any]) -> Identity:
    """Return the identity in a certificate as `ssl` decodes it; empty = it verified none."""
    alternatives = [(kind, value) for kind, value in certificate.get("subjectAltName", ())]
    subject = [pair for field in certificate.get("subject", ()) for pair in field]
    names = [value for kind, value in alternatives if kind == "DNS"]
    names += [value for key, value in subject if key == "commonName"]
    return Identity(
        version,
        verified=bool(certificate),
        alternatives=tuple(value for kind, value in alternatives if kind in ("DNS", _ADDRESS)),
        names=tuple(dict.fromkeys(names)),
    )


_ADDRESS = "IP Address"  # as `ssl` spells the kind


def check_name(identity: Identity, wanted: Iterable[str], peer: str) -> None:
    """Raise ChannelError unless the verified certificate is for one of the names `wanted`."""
    asked = [name for name in wanted if name]
    if not any(_same(name, other) for name in asked for other in identity.alternatives):
        said = ", ".join(identity.alternatives) or "nobody"
        raise ChannelError(
            f"TLS: the certificate is for {said}, not for {' or '.join(dict.fromkeys(asked))}",
            peer=peer,
        )


def _same(wanted: str, shown: str) -> bool:
    address = _address(wanted)
    if address:
        return address == _address(shown)
    return wanted.rstrip(".").lower() == shown.rstrip(".").lower()


def _address(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return ""


def _reason(error: Exception) -> str:
    """Return OpenSSL's reason without its numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "what answers there speaks no TLS"
    if isinstance(error, ssl.SSLError) and error.reason:
        return str(error.reason).replace("_", " ").lower()
    return str(getattr(error, "strerror", None) or error).lower()
