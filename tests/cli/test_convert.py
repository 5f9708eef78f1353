import lzma
from pathlib import Path

import pytest

from xendpy.cli import xm

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XENDPY_ROOT", str(tmp_path / "root"))


def unpacked(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(lzma.decompress((DATA / f"{name}.xz").read_bytes()))
    return path


def convert(*args):
    return xm.main(["convert", *map(str, args)])


PV, HVM = "xend-4.4-pv64-live.relocation", "xend-4.4-hvm-live.relocation"


@pytest.mark.parametrize("name", [PV, HVM])
def test_a_relocation_becomes_a_file_for_xl(tmp_path, capsys, name):
    target = tmp_path / "out"
    assert convert(unpacked(tmp_path, name), target) == 0
    assert target.read_bytes().startswith(b"Xen saved domain, xl format\n \0 \r\4\3\2\1\3\0\0\0")
    assert capsys.readouterr().out.endswith("for xl restore\n")


def test_a_file_of_xl_becomes_one_of_xend_and_comes_back_the_same(tmp_path, capsys):
    first, back, again = (tmp_path / name for name in ("first.xl", "back.xend", "again.xl"))
    assert convert(unpacked(tmp_path, PV), first) == 0
    assert convert(first, back) == 0
    assert back.read_bytes().startswith(b"LinuxGuestRecord")
    assert convert(back, again) == 0
    assert image(again) == image(first)


def image(path):
    data = path.read_bytes()
    return data[data.index(b"LibxlFmt") :]


@pytest.mark.parametrize("to_xl_first", [True, False])
def test_a_file_is_made_for_a_xend_with_32_bit_tools(tmp_path, to_xl_first):
    source, narrow = unpacked(tmp_path, PV), tmp_path / "narrow"
    if to_xl_first:
        assert convert(source, tmp_path / "first.xl") == 0
        source = tmp_path / "first.xl"
    assert convert("--to", "xend", "--tools", "32", source, narrow) == 0
    data = narrow.read_bytes()
    head = 20 + int.from_bytes(data[16:20], "big")
    assert data[head + 4 : head + 8] == b"\xff" * 4  # behind a p2m_size of 4 bytes: ext info
    for name, made in (("wide.xl", unpacked(tmp_path, PV)), ("back.xl", narrow)):
        assert convert(made, tmp_path / name) == 0
    assert image(tmp_path / "back.xl") == image(tmp_path / "wide.xl")


def test_bridges_are_mapped(tmp_path):
    config = tmp_path / "root/etc/xen/xend-config.sxp"
    config.parent.mkdir(parents=True)
    config.write_text("(xendpy-map-bridge xenbr0 br7)")
    target = tmp_path / "out"
    assert convert(unpacked(tmp_path, PV), target) == 0
    assert b'"bridge": "br7"' in target.read_bytes()


BAD = [
    ("pvh", "xl-4.17-pvh-trimmed.save", ["--to", "xend"], "a PVH guest in a stream for a xend"),
    ("twice", PV, ["--to", "xend"], "the image is xend's already"),
]


@pytest.mark.parametrize(
    ("name", "args", "text"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_what_cannot_be_converted_is_said(tmp_path, capsys, name, args, text):
    target = tmp_path / "out"
    assert convert(unpacked(tmp_path, name), target, *args) == 1
    assert text in capsys.readouterr().err
    assert list(tmp_path.glob("*out*")) == []


def test_a_cut_file_leaves_nothing(tmp_path, capsys):
    source = unpacked(tmp_path, PV)
    source.write_bytes(source.read_bytes()[:200_000])
    assert convert(source, tmp_path / "out") == 1
    assert "the stream ends" in capsys.readouterr().err
    assert list(tmp_path.glob("*out*")) == []


def test_other_files_are_refused(tmp_path, capsys):
    source = tmp_path / "notes.txt"
    source.write_text("hello " * 100)
    assert convert(source, tmp_path / "out") == 1
    assert "neither a save file of xend's nor of xl's" in capsys.readouterr().err
