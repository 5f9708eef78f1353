"""Certificates made and renewed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from xendpy.cli import pki as command
from xendpy.paths import Paths
from xendpy.relocation.pki import CA_LIFE, HOST_LIFE, Pki, PkiError, read

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    made = Pki(tmp_path / "etc/xen/pki")
    made.init("a CA", NOW)
    return made


def test_keys_are_nobody_else_s_to_read(pki: Pki) -> None:
    pki.issue("a.example", ["192.0.2.7", "alias"], NOW)
    for name in ("ca", "a.example"):
        assert pki.key_file(name).stat().st_mode & 0o777 == 0o600
    assert pki.directory.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in pki.directory.iterdir()) == [
        "a.example.key", "a.example.pem", "ca.key", "ca.pem",
    ]  # fmt: skip


def test_a_certificate_says_what_it_is_for(pki: Pki) -> None:
    made = pki.issue("a.example", ["192.0.2.7", "alias"], NOW)
    assert made == read(pki.certificate_file("a.example"))
    assert made.names == ("a.example", "192.0.2.7", "alias")
    assert made.issuer == "a CA"
    assert made.not_after - NOW == HOST_LIFE
    assert made.days_left(NOW) == 365
    assert pki.read("ca").not_after - NOW == CA_LIFE


@pytest.mark.parametrize("host", ["", "ca", "../x", "a/b", "-a", "a..b", "a b", "x" * 300, "a\n"])
def test_odd_hosts_are_refused(pki: Pki, host: str) -> None:
    with pytest.raises(PkiError, match="is no host's name or address"):
        pki.issue(host, [], NOW)


def test_nothing_is_overwritten(pki: Pki, tmp_path: Path) -> None:
    pki.issue("a", [], NOW)
    key = pki.key_file("a").read_bytes()
    with pytest.raises(PkiError, match="has one already"):
        pki.issue("a", [], NOW)
    with pytest.raises(PkiError, match="there is a CA already"):
        pki.init("another", NOW)
    with pytest.raises(PkiError, match="neither an address nor a host's name"):
        pki.issue("b", ["no address"], NOW)
    assert not pki.key_file("b").exists()
    with pytest.raises(PkiError, match="there is no CA below"):
        Pki(tmp_path / "empty").issue("a", [], NOW)
    assert pki.key_file("a").read_bytes() == key


def test_what_expires_soon_is_renewed_with_its_key(pki: Pki) -> None:
    pki.issue("old", ["192.0.2.7"], NOW - timedelta(days=320))
    pki.issue("fresh", [], NOW)
    key = pki.key_file("old").read_bytes()
    (renewed,) = pki.renew([], NOW)
    assert renewed.path == pki.certificate_file("old")
    assert renewed.names == ("old", "192.0.2.7")
    assert renewed.days_left(NOW) == 365
    assert pki.key_file("old").read_bytes() == key
    assert pki.renew([], NOW) == []
    assert [item.path.stem for item in pki.renew(["fresh"], NOW)] == ["fresh"]
    with pytest.raises(PkiError, match=r"nobody\.pem cannot be read"):
        pki.renew(["nobody"], NOW)


def test_a_ca_near_its_end_is_renewed_first(pki: Pki) -> None:
    late = NOW + CA_LIFE + timedelta(days=3)
    with pytest.raises(PkiError, match="the CA has expired"):
        pki.issue("a", [], late)
    assert [item.path.stem for item in pki.renew([], late)] == ["ca"]
    assert pki.issue("a", [], late).issuer == "a CA"


def test_the_command_prints_the_lines_of_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = Paths(tmp_path)
    assert command.run(["issue", "a"], paths) == 1
    assert "`xend pki init` makes one" in capsys.readouterr().err
    assert command.run(["init"], paths) == 0
    assert command.run(["issue", "a.example", "--address", "192.0.2.7"], paths) == 0
    said = capsys.readouterr().out
    assert "    (xend-relocation-server-ssl-key-file /etc/xen/pki/a.example.key)\n" in said
    assert "    (xendpy-relocation-tls-ca /etc/xen/pki/ca.pem)\n" in said
    assert command.run(["show"], paths) == 0
    assert "a.example.pem            a.example, 192.0.2.7" in capsys.readouterr().out
    assert command.run(["renew"], paths) == 0
    assert capsys.readouterr().out == "nothing expires soon\n"
    assert command.run(["sell"], paths) == 1
    assert "usage: xend pki init" in capsys.readouterr().err
