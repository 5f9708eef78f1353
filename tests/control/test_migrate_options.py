"""What `xm migrate` may ask the daemon for."""

from __future__ import annotations

from typing import Any

import pytest

from xendpy.control.migrate_options import MigrateOptions
from xendpy.errors import DomainError


@pytest.mark.parametrize(("given", "bits"), [({}, 0), ({"tools": 32}, 32), ({"tools": 64}, 64)])
def test_tools(given: dict[str, Any], bits: int) -> None:
    assert MigrateOptions.parse(given).tool_bits == bits


@pytest.mark.parametrize("bits", [0, 16])
def test_tools_of_another_width_are_refused(bits: int) -> None:
    with pytest.raises(DomainError, match=f"tools of {bits} bits, expected 32 or 64"):
        MigrateOptions.parse({"tools": bits})


def test_a_release_that_nobody_speaks_is_refused() -> None:
    with pytest.raises(DomainError, match=r"release 4\.9, expected one of 3\.0, 3\.1"):
        MigrateOptions.parse({"release": "4.9"})
