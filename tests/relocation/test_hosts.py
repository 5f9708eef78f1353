"""hosts-allow: xend's meaning, by table."""

from __future__ import annotations

import pytest

from xendpy.errors import ConfigError
from xendpy.relocation.hosts import HostsAllow

ADDRESS, NAME = "10.0.0.5", "h.example.org"
TABLE = [
    ("", ADDRESS, None, True, ""),
    (r"^10\.0\.0\.5$", ADDRESS, None, True, r"^10\.0\.0\.5$"),
    (r"^h\.example\.org$", ADDRESS, NAME, True, r"^h\.example\.org$"),
    (r"^h\.example\.org$", ADDRESS, None, False, ""),
    (r"10.0.0.5", "10.0.0.55", None, True, "10.0.0.5"),  # match, not fullmatch
    (r"example\.org", ADDRESS, NAME, False, ""),  # from the start
    (r".*\.example\.org", ADDRESS, "h.example.org.evil.com", True, r".*\.example\.org"),
    (r"^H\.", ADDRESS, NAME, False, ""),  # case counts
    (r"^a$ ^h\.", ADDRESS, NAME, True, r"^h\."),
]


@pytest.mark.parametrize(("text", "address", "name", "allowed", "rule"), TABLE)
def test_decide(text: str, address: str, name: str | None, allowed: bool, rule: str) -> None:
    verdict = HostsAllow.parse(text).decide(address, name)
    assert (verdict.allowed, verdict.rule) == (allowed, rule)


def test_an_address_is_let_in_without_its_name() -> None:
    hosts = HostsAllow.parse(r"^h\. ^10\.0\.0\.5$")
    assert hosts.match_address(ADDRESS) == r"^10\.0\.0\.5$"
    assert hosts.match_address("10.0.0.6") is None
    assert HostsAllow.parse("").match_address(ADDRESS) == ""


@pytest.mark.parametrize("text", [" ^a$", "^a$ ", "^a$  ^b$", "(", " "])
def test_what_would_let_everybody_in_or_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HostsAllow.parse(text, path="f", line=3)
    assert str(caught.value).startswith("f:3: xend-relocation-hosts-allow: ")
