"""A certificate authority for the relocation of guests, and certificates for hosts.

P-256 keys, names in the subject's alternative names, each certificate for both ends of a
connection: a host receives and sends with the same one. Private keys are files of mode 0600.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xendpy.errors import XendError

CA_LIFE = timedelta(days=3652)
HOST_LIFE = timedelta(days=365)
RENEW_BEFORE = timedelta(days=60)
BACKDATED = timedelta(hours=1)  # hosts' clocks differ
CA = "ca"
_HOST = re.compile(r"(?!.{254})[A-Za-z0-9][A-Za-z0-9-]{0,62}(\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*")

PrivateKey = ec.EllipticCurvePrivateKey


class PkiError(XendError):
    """A certificate cannot be made, read or written; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate file says; times in UTC."""

    path: Path
    names: tuple[str, ...]
    issuer: str
    not_before: datetime
    not_after: datetime

    def days_left(self, now: datetime) -> int:
        """Return whole days until it expires, negative after that."""
        return (self.not_after - now).days


class Pki:
    """The files below one directory: ca.pem, ca.key, and HOST.pem, HOST.key for each host."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def certificate_file(self, name: str) -> Path:
        return self.directory / f"{name}.pem"

    def key_file(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def init(self, name: str, now: datetime) -> Certificate:
        """Make the CA, called `name`.

        Raises:
            PkiError: there is one already.
        """
        if self.key_file(CA).exists():
            raise PkiError(f"there is a CA already: {self.key_file(CA)}")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        self._write_key(CA, key)
        return self._write(CA, _sign_ca(key, name, now))

    def issue(self, host: str, addresses: Sequence[str], now: datetime) -> Certificate:
        """Make key and certificate of `host`, good for `addresses` as well.

        Raises:
            PkiError: no CA, no host's name, no address, or the host has a certificate already.
        """
        if host == CA or not _HOST.fullmatch(host):
            raise PkiError(f"{host!r} is no host's name or address")
        names = _alternatives([host, *addresses])
        if self.certificate_file(host).exists():
            raise PkiError(f"{host} has one already: {self.certificate_file(host)}; see renew")
        ca, ca_key = self._ca(now)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign_host(key.public_key(), host, names, ca, ca_key, now)
        self._write_key(host, key)
        return self._write(host, certificate)

    def renew(self, hosts: Sequence[str], now: datetime) -> list[Certificate]:
        """Certify `hosts` anew with the keys they have; without any, those about to expire.

        A CA that ends before a host's certificate would is renewed too, with its own key: the
        certificates it gave stay good.

        Raises:
            PkiError: one of them has none.
        """
        due = hosts or [
            item.path.stem
            for item in self.show()
            if item.path.stem != CA and item.not_after - now < RENEW_BEFORE
        ]
        renewed = []
        if self.read(CA).not_after - now < HOST_LIFE:
            old, key = self._ca(now, expired=True)
            renewed.append(self._write(CA, _sign_ca(key, _common_name(old.subject), now)))
        ca, ca_key = self._ca(now)
        for host in due:
            old = _load(self.certificate_file(host))
            names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            public = old.public_key()
            if not isinstance(public, ec.EllipticCurvePublicKey):
                raise PkiError(f"{self.certificate_file(host)} has no P-256 key")
            certificate = _sign_host(public, host, list(names), ca, ca_key, now)
            renewed.append(self._write(host, certificate))
        return renewed

    def show(self) -> list[Certificate]:
        """Return what every certificate says, the CA's first.

        Raises:
            PkiError: one cannot be read.
        """
        files = sorted(self.directory.glob("*.pem"), key=lambda path: (path.stem != CA, path.stem))
        return [read(path) for path in files]

    def read(self, name: str) -> Certificate:
        return read(self.certificate_file(name))

    def _ca(self, now: datetime, *, expired: bool = False) -> tuple[x509.Certificate, PrivateKey]:
        if not self.key_file(CA).exists():
            raise PkiError(f"there is no CA below {self.directory}: `xend pki init` makes one")
        ca = _load(self.certificate_file(CA))
        if not expired and _not_after(ca) < now:
            raise PkiError("the CA has expired: `xend pki renew`")
        key = serialization.load_pem_private_key(self.key_file(CA).read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise PkiError(f"{self.key_file(CA)} is no P-256 key")
        return ca, key

    def _write_key(self, name: str, key: PrivateKey) -> None:
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _replace(self.key_file(name), pem, 0o600)

    def _write(self, name: str, certificate: x509.Certificate) -> Certificate:
        path = self.certificate_file(name)
        _replace(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return _said(path, certificate)


def read(path: Path) -> Certificate:
    """Return what a certificate file says, its first certificate if there are more.

    Raises:
        PkiError: it cannot be read.
    """
    return _said(path, _load(path))


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise PkiError(f"{path} cannot be read: {(error.strerror or '').lower()}") from error
    except ValueError as error:
        raise PkiError(f"{path} is no certificate") from error


def _said(path: Path, certificate: x509.Certificate) -> Certificate:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = tuple(str(name.value) for name in extension.value)
    except x509.ExtensionNotFound:
        names = ()
    return Certificate(
        path,
        names,
        _common_name(certificate.issuer),
        _utc(certificate, "not_valid_before"),
        _not_after(certificate),
    )


def _not_after(certificate: x509.Certificate) -> datetime:
    return _utc(certificate, "not_valid_after")


def _utc(certificate: x509.Certificate, field: str) -> datetime:
    # cryptography < 42, as in Debian 12, has the names without _utc only, and no time zone.
    known = getattr(certificate, f"{field}_utc", None) or getattr(certificate, field)
    assert isinstance(known, datetime)
    return known if known.tzinfo else known.replace(tzinfo=UTC)


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _alternatives(names: Sequence[str]) -> list[x509.GeneralName]:
    return [_alternative(name, first=index == 0) for index, name in enumerate(names)]


def _alternative(name: str, *, first: bool) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not first and not _HOST.fullmatch(name):
            raise PkiError(f"{name!r} is neither an address nor a host's name") from None
        return x509.DNSName(name)


def _builder(
    subject: str, issuer: x509.Name | None, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject[:64])])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _sign_ca(key: PrivateKey, name: str, now: datetime) -> x509.Certificate:
    public = key.public_key()
    return (
        _builder(name, None, now, CA_LIFE)
        .public_key(public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _sign_host(
    public: ec.EllipticCurvePublicKey,
    host: str,
    names: Sequence[x509.GeneralName],
    ca: x509.Certificate,
    ca_key: PrivateKey,
    now: datetime,
) -> x509.Certificate:
    both_ends = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(host, ca.subject, now, HOST_LIFE)
        .public_key(public)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both_ends), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(issuer, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Put a whole file in place; a key is never readable to others, not for a moment."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    os.replace(fresh, path)
