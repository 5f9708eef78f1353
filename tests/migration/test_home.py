"""Guests that bring their managed configuration along."""

from __future__ import annotations

import logging

import pytest

from tests import streams
from xendpy.errors import DomainExists
from xendpy.guest.domain import DomainConfig
from xendpy.guest.origin import is_received
from xendpy.migration.home import home_of, settle, with_home

PLAIN = DomainConfig.parse(streams.config("web1"))
MOVES = with_home(PLAIN, moves=True)


def test_what_is_sent_says_whether_the_home_moves() -> None:
    assert with_home(PLAIN, moves=False) is PLAIN
    assert MOVES.text("change_home_server") == "True"
    assert with_home(MOVES, moves=True) is MOVES
    assert with_home(MOVES, moves=False).text("change_home_server") == "False"


def test_only_what_says_so_is_managed_here() -> None:
    kept: list[DomainConfig] = []
    settle(home_of(PLAIN), kept.append)
    settle(home_of(with_home(MOVES, moves=False)), kept.append)
    assert kept == []
    settle(home_of(MOVES), kept.append)
    assert [config.uuid for config in kept] == [PLAIN.uuid]
    assert home_of(kept[0]) == ""
    assert is_received(kept[0])


@pytest.mark.parametrize("error", [OSError(28, "no space left"), DomainExists("web1", "taken")])
def test_a_guest_that_cannot_be_managed_runs_all_the_same(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def put(config: DomainConfig) -> None:
        raise error

    with caplog.at_level(logging.WARNING):
        settle(home_of(MOVES), put)
    assert "web1" in caplog.text and "not managed here" in caplog.text
