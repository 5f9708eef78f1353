"""What `xend check-config` says of certificates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from xendpy.cli.check_config import check_tls
from xendpy.config_file import parse
from xendpy.paths import Paths
from xendpy.relocation.pki import Pki

NOW = datetime(2026, 11, 23, tzinfo=UTC)
LINES = """\
(xend-relocation-ssl-server yes)
(xend-relocation-server-ssl-key-file /etc/xen/pki/a.key)
(xend-relocation-server-ssl-cert-file /etc/xen/pki/a.pem)
(xendpy-relocation-tls-ca /etc/xen/pki/ca.pem)
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    pki = Pki(tmp_path / "etc/xen/pki")
    pki.init("a CA", NOW)
    pki.issue("a", [], NOW)
    return Paths(tmp_path)


def warnings(paths: Paths, text: str = LINES, days: int = 0) -> list[tuple[int, str]]:
    loaded = parse(text, paths.config_file)
    found = check_tls(loaded, paths, NOW + timedelta(days=days))
    return [(item.line, item.text.replace(str(paths.root), "")) for item in found]


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (0, []),
        (304, []),
        (306, [(3, "/etc/xen/pki/a.pem expires in 59 days: `xend pki renew`")]),
        (400, [(3, "/etc/xen/pki/a.pem expired on 2027-11-23")]),
    ],
)
def test_expiry_is_warned_about(paths: Paths, days: int, said: list[tuple[int, str]]) -> None:
    assert warnings(paths, days=days) == said


def test_a_key_that_others_can_read_is_warned_about(paths: Paths) -> None:
    (paths.config_dir / "pki/a.key").chmod(0o640)
    assert warnings(paths) == [(2, "/etc/xen/pki/a.key can be read by others: chmod 600")]


def test_what_would_keep_the_daemon_from_starting_is_said(paths: Paths) -> None:
    (paths.config_dir / "pki/a.pem").unlink()
    (first, _, *_) = warnings(paths)
    assert first[0] == 3
    assert first[1].startswith("the daemon would not start: xend-relocation-server-ssl-cert-file:")


def test_a_host_that_nobody_can_reach_is_warned_about(paths: Paths) -> None:
    text = "(xendpy-relocation-require-tls yes)\n"
    assert warnings(paths, text) == [
        (1, "no guest can come in: TLS is required and its server is off")
    ]
