"""The demonstration's own proof: it must fail if anything is not as it was sent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.demo.receive_demo import DemoFailed, compare

PAGE = 4096
PAGES = {pfn: bytes([pfn + 1]) * PAGE for pfn in (0, 1, 2, 7)}
DESCRIBED = {
    "page_sha256": {hex(pfn): hashlib.sha256(page).hexdigest() for pfn, page in PAGES.items()}
}


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    with path.open("wb") as file:
        for pfn, page in PAGES.items():
            file.seek(pfn * PAGE)
            file.write(page)
        file.truncate(16 * PAGE)
    return path


def test_the_same_memory_passes(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(memory, DESCRIBED)
    assert "4 pages compared with the recorded description: identical" in capsys.readouterr().out


def put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: put(path, 2 * PAGE + 4095, b"\0"),
        lambda path: put(path, 9 * PAGE, b"\1" * PAGE),
        lambda path: put(path, 9 * PAGE, bytes(PAGE)),
        lambda path: path.open("r+b").truncate(7 * PAGE),
    ],
    ids=["one-byte", "a-page-too-many", "zeros-for-a-hole", "a-page-missing"],
)
def test_other_memory_does_not(memory: Path, spoil: Callable[[Path], object]) -> None:
    spoil(memory)
    with pytest.raises(DemoFailed, match="1 of 4 pages differ"):
        compare(memory, DESCRIBED)


def test_a_description_of_nothing_proves_nothing(memory: Path) -> None:
    with pytest.raises(DemoFailed):
        compare(memory, {"page_sha256": {}})
