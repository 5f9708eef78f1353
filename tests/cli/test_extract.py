"""`xm extract`: page n at n x 4096, holes elsewhere, and nothing left behind on failure."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.cli.images import HVM, PV32, PV64, call, description, stream
from xendpy.cli import extract

PAGE = 4096


def pages_with_data(path: Path) -> dict[int, str]:
    """Return pfn → sha256 of every page that is no hole."""
    found = {}
    with path.open("rb", buffering=0) as file:
        end, position = path.stat().st_size, 0
        while position < end:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            file.seek(position)
            found[position // PAGE] = hashlib.sha256(file.read(PAGE)).hexdigest()
            position += PAGE
    return found


@pytest.mark.parametrize("name", [PV64, HVM, PV32])
def test_every_page_is_the_recorded_one_and_all_else_holes(name: str, tmp_path: Path) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    image.write_bytes(stream(name))
    assert call(extract, image, out) == 0
    described = description(name)
    assert pages_with_data(out) == {
        int(pfn, 16): digest for pfn, digest in described["page_sha256"].items()
    }
    assert out.stat().st_size == described["p2m_size"] * PAGE
    assert out.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["image", "out"]


def test_an_existing_file_is_not_overwritten_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    image.write_bytes(stream(PV32))
    out.write_bytes(b"precious")
    assert call(extract, image, out) == 1
    assert capsys.readouterr().err == f"Error: {out}: exists; --force overwrites it\n"
    assert out.read_bytes() == b"precious"
    assert call(extract, image, out, "--force") == 0
    assert out.stat().st_size == description(PV32)["p2m_size"] * PAGE


def test_a_cut_image_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    image.write_bytes(stream(PV64)[:9_000_000])
    assert call(extract, image, out) == 1
    assert "the stream ends after" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["image"]


def test_a_cut_image_does_not_replace_a_file_even_with_force(tmp_path: Path) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    image.write_bytes(stream(PV64)[:9_000_000])
    out.write_bytes(b"precious")
    assert call(extract, image, out, "--force") == 1
    assert out.read_bytes() == b"precious"


def test_partial_writes_what_came_before_the_cut(tmp_path: Path) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    # Two whole batches of the first round: 0x402a15 and 0x804a19 are where they end.
    image.write_bytes(stream(PV64)[: 0x804A19 + 100])
    assert call(extract, image, out, "--partial") == 1
    assert len(pages_with_data(out)) == 1023 + 1024


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "neither a save file, nor a relocation, nor a libxc stream"),
        (b"#!/bin/sh\necho hello\n", "neither a save file"),
        (b"Xen saved domain, xl format\n \0 \r" + bytes(64), "byte order 0x0"),
        (b"receive\n", "signature read"),
        (b"LinuxGuestRecord\xff\xff\xff\xff", "config size -1"),
    ],
    ids=["empty", "script", "xl", "request-only", "negative-length"],
)
def test_other_files_are_refused_and_leave_nothing(
    content: bytes, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    image.write_bytes(content)
    assert call(extract, image, out) == 1
    assert complaint in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["image"]


@pytest.mark.parametrize("missing", ["image", "directory"])
def test_what_is_missing_is_named(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    if missing == "directory":
        image.write_bytes(stream(PV32))
        out = tmp_path / "nowhere" / "out"
    assert call(extract, image, out) == 1
    assert "No such file or directory" in capsys.readouterr().err
