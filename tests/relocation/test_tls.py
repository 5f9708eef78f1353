"""Contexts, identities, and what can be wrong with the files."""

from __future__ import annotations

import logging
import socket
import ssl
import threading

import pytest

from tests.certificates import Authority
from xendpy.errors import ChannelError, ChannelTimeout, ConfigError
from xendpy.relocation.channel import Channel
from xendpy.relocation.tls import (
    Identity,
    TlsServer,
    check_name,
    client_context,
    identify,
    shake_hands,
    wrap,
)

CERTIFICATE = {
    "subject": ((("commonName", "web"),),),
    "subjectAltName": (("DNS", "a.example"), ("IP Address", "192.0.2.7"), ("URI", "x:y")),
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("pki"))
    made.issue("a.example", "127.0.0.1")
    made.issue("b.example")
    return made


def test_identity_has_names_and_alternatives() -> None:
    found = identify("TLSv1.3", CERTIFICATE)
    assert found == Identity(
        "TLSv1.3",
        verified=True,
        alternatives=("a.example", "192.0.2.7"),
        names=("a.example", "web"),
    )
    assert not identify("TLSv1.2", {}).verified


@pytest.mark.parametrize(
    ("wanted", "good"),
    [
        (("a.example",), True),
        (("A.Example.",), True),
        (("192.0.2.7",), True),
        (("elsewhere", "192.0.2.7"), True),
        (("web",), False),  # the common name vouches for nobody
        (("a.example.evil",), False),
        (("192.0.2.70",), False),
        (("",), False),
    ],
)
def test_the_certificate_must_be_for_the_peer(wanted: tuple[str, ...], good: bool) -> None:
    identity = identify("TLSv1.3", CERTIFICATE)
    if good:
        check_name(identity, wanted, "p")
    else:
        with pytest.raises(ChannelError, match=r"is for a\.example, 192\.0\.2\.7, not for"):
            check_name(identity, wanted, "p")


def test_no_server_without_being_asked(authority: Authority) -> None:
    config = authority.config("a.example", relocation_ssl_server=False)
    assert TlsServer.of(config, authority.paths) is None


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, ssl.CERT_REQUIRED),
        ({"relocation_tls_verify": "optional"}, ssl.CERT_OPTIONAL),
        ({"relocation_tls_verify": "none"}, ssl.CERT_NONE),
        ({"ca": False}, ssl.CERT_NONE),
    ],
)
def test_who_must_show_a_certificate(
    authority: Authority, options: dict[str, object], mode: ssl.VerifyMode
) -> None:
    made = TlsServer.of(authority.config("a.example", **options), authority.paths)  # type: ignore[arg-type]  # keywords of both kinds
    assert made is not None
    assert made.context.verify_mode is mode
    assert made.verifies == (mode is not ssl.CERT_NONE)
    assert made.context.minimum_version is ssl.TLSVersion.TLSv1_2


BAD = [
    ("no-key", {"relocation_ssl_key": ""}, "ssl-key-file: not set, and TLS needs"),
    ("no-certificate", {"relocation_ssl_cert": ""}, "ssl-cert-file: not set, and TLS needs"),
    ("missing", {"relocation_ssl_key": "nowhere.key"}, r"etc/xen/nowhere\.key cannot be read: no"),
    ("not-pem", {"relocation_ssl_key": "junk"}, "cannot be used: "),
    ("mismatch", {"relocation_ssl_key": "/etc/xen/pki/b.example.key"}, "key values mismatch"),
    ("bad-ca", {"relocation_tls_ca": "junk"}, r"tls-ca: .*etc/xen/junk cannot be used"),
    ("no-ca", {"ca": False, "relocation_tls_verify": "required"}, "tls-verify: required, but"),
]


@pytest.mark.parametrize(("options", "text"), [row[1:] for row in BAD], ids=[r[0] for r in BAD])
def test_unusable_files_are_named(
    authority: Authority, options: dict[str, object], text: str
) -> None:
    (authority.root / "etc/xen/junk").write_text("junk\n")
    with pytest.raises(ConfigError, match=text):
        TlsServer.of(authority.config("a.example", **options), authority.paths)  # type: ignore[arg-type]  # keywords of both kinds


def test_nobody_is_asked_for_a_password(authority: Authority) -> None:
    from cryptography.hazmat.primitives import serialization

    pem = authority.pki.key_file("a.example").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    locked = authority.root / "etc/xen/locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="cannot be used"):
        TlsServer.of(
            authority.config("a.example", relocation_ssl_key="locked.key"), authority.paths
        )


def test_sending_without_a_ca_is_refused_unless_verification_is_given_up(
    authority: Authority,
) -> None:
    with pytest.raises(ConfigError, match="xend pki init"):
        client_context(authority.config("a.example", ca=False), authority.paths)
    config = authority.config("a.example", ca=False, relocation_tls_verify="none")
    assert client_context(config, authority.paths).verify_mode is ssl.CERT_NONE
    context = client_context(authority.config("a.example"), authority.paths)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3


class Pair:
    """Two ends of one TLS connection, hands shaken."""

    def __init__(self, authority: Authority, **options: object) -> None:
        config = authority.config("a.example", **options)  # type: ignore[arg-type]  # keywords of both kinds
        server = TlsServer.of(config, authority.paths)
        assert server is not None
        left, right = socket.socketpair()
        self.near = wrap(left, server.context)
        self.far = wrap(
            right, client_context(authority.config("b.example"), authority.paths), server_name="a"
        )
        self.identities: dict[str, Identity] = {}
        thread = threading.Thread(target=self._accept)
        thread.start()
        self.identities["server"] = shake_hands(self.far, 10, "far")
        thread.join()

    def _accept(self) -> None:
        self.identities["client"] = shake_hands(self.near, 10, "near")

    def __enter__(self) -> tuple[Channel, Channel]:
        return Channel(self.near), Channel(self.far)

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self.far.close()


def test_both_sides_know_each_other(authority: Authority) -> None:
    pair = Pair(authority)
    with pair:
        assert pair.identities["server"].alternatives == ("a.example", "127.0.0.1")
        assert pair.identities["client"].names == ("b.example",)
        assert pair.identities["client"].version == "TLSv1.3"


def test_readable_sees_bytes_that_are_decrypted_already(authority: Authority) -> None:
    with Pair(authority) as (near, far):
        # The socket may hold records that are no payload: those are not something to read.
        assert not far.readable()
        near.send([b"ab" * 4000])
        assert far.recv_exactly(1) == b"a"
        assert far.readable()  # nothing is left in the socket: all was decrypted at once
        assert far.readable()
        assert far.recv_exactly(7999) == (b"ab" * 4000)[1:]
        assert far.offset == 8000
        assert not far.readable()
        near.half_close()
        assert far.recv_some(memoryview(bytearray(1))) == 0
        assert far.readable()


def test_many_small_pieces_arrive_in_order_over_tls(authority: Authority) -> None:
    pieces = [bytes([number % 251]) * (number % 5000) for number in range(400)]
    pieces.insert(7, b"big" * 40000)
    with Pair(authority) as (near, far):
        got: list[bytes] = []
        want = b"".join(pieces)
        thread = threading.Thread(target=lambda: got.append(far.recv_exactly(len(want))))
        thread.start()
        near.send(pieces)
        thread.join()
        assert got == [want]


def test_hands_are_not_shaken_for_ever(authority: Authority) -> None:
    left, right = socket.socketpair()
    server = TlsServer.of(authority.config("a.example"), authority.paths)
    assert server is not None
    with left, right, wrap(left, server.context) as s, pytest.raises(ChannelTimeout):
        shake_hands(s, 0.05, "p")


def test_garbage_is_no_handshake(authority: Authority) -> None:
    left, right = socket.socketpair()
    server = TlsServer.of(authority.config("a.example"), authority.paths)
    assert server is not None
    with left, right, wrap(left, server.context) as sock:
        right.sendall(b"receive\n" * 10)
        with pytest.raises(ChannelError, match="TLS: "):
            shake_hands(sock, 5, "p")


def test_old_versions_are_spoken_only_where_asked_for(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for oldest, good in (("1.2", False), ("1.0", True)):
        config = authority.config("a.example", ca=False, relocation_tls_min=oldest)
        server = TlsServer.of(config, authority.paths)
        assert server is not None
        assert _speaks_tls_1_0(server.context) is good


def _speaks_tls_1_0(context: ssl.SSLContext) -> bool:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1
    left, right = socket.socketpair()
    with left, right, wrap(left, context) as near, wrap(right, client, server_name="a") as far:
        failed: list[Exception] = []

        def accept() -> None:
            try:
                shake_hands(near, 10, "near")
            except ChannelError as error:
                failed.append(error)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            shake_hands(far, 10, "far")
        except ChannelError as error:
            failed.append(error)
        thread.join()
        return not failed
