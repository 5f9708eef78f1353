"""The walkthrough's own proof: a lost or doubled tick must not pass."""

from __future__ import annotations

import pytest

from tests.demo.walkthrough import DemoFailed, changes, check_ticks, show_log, ticks


def log(*items: tuple[str, int]) -> list[str]:
    return [
        f"{host} Mon Nov  3 23:48:{number:02d}.500 UTC 2026 #{number}" for host, number in items
    ]


GOOD = log(("a", 1), ("a", 2), ("b", 3), ("b", 4), ("b", 5), ("a", 6), ("a", 7))


def test_the_log_of_two_journeys(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_log(GOOD, ["a", "b"]) == [1.0, 1.0]
    assert "7 ticks, numbered 1 to 7, none missing" in capsys.readouterr().out
    assert list(changes(ticks(GOOD))) == [(2, "b"), (5, "a")]


@pytest.mark.parametrize(
    "lines",
    [GOOD[:3] + GOOD[4:], GOOD[:3] + GOOD[2:], [], GOOD[::-1]],
    ids=["lost", "doubled", "nothing", "backwards"],
)
def test_other_ticks_do_not_pass(lines: list[str]) -> None:
    with pytest.raises(DemoFailed, match="lost or doubled"):
        check_ticks(ticks(lines))


def test_a_journey_that_the_log_does_not_show() -> None:
    with pytest.raises(DemoFailed, match="the way"):
        show_log(GOOD, ["a", "b", "a"])


def test_a_line_that_is_no_tick() -> None:
    with pytest.raises(DemoFailed, match="not a line"):
        ticks(["a Mon Nov 23 23:48"])
