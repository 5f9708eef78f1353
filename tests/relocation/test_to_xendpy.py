"""What a target says about itself, as its source takes it: a claim, and never a reason to fail."""

from __future__ import annotations

import pytest

from xendpy.errors import HandshakeError
from xendpy.migration.preflight import Check, Status
from xendpy.relocation.to_xendpy import parse_checks, resume_seconds


@pytest.mark.parametrize(
    ("report", "seconds"),
    [
        (b'{"resume_s":0.5}', 0.5),
        (b'{"resume_s":"0.5"}', 0.0),
        (b'{"resume_s":-1}', 0.0),
        (b'{"resume_s":1e999}', 0.0),
        (b'{"resume_s":NaN}', 0.0),
        (b'{"resume_s":1' + b"0" * 400 + b"}", 0.0),
        (b"{}", 0.0),
        (b"[]", 0.0),
        (b"{", 0.0),
        (b"", 0.0),
    ],
)
def test_a_guest_that_runs_there_runs_there_whatever_the_report(
    report: bytes, seconds: float
) -> None:
    assert resume_seconds(report) == seconds


def test_checks_that_are_none_are_passed_over() -> None:
    good = Check("memory", Status.OK, "64 MiB")
    said = b'{"checks":[1,{"name":"memory","status":"ok","detail":"64 MiB"},[],null]}'
    assert parse_checks(said) == [good]
    for odd in (b'{"checks":7}', b'{"checks":{"a":1}}', b'{"checks":null}', b"{}"):
        assert parse_checks(odd) == []
    with pytest.raises(HandshakeError):
        parse_checks(b"7")
