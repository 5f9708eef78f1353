"""Who may import whom, over the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "xendpy"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Left never imports right; what stands together may import each other.
LAYERS = [
    {"errors", "paths"},
    {"sxp"},
    {"config", "config_values", "config_file", "guest"},
    {"stream"},
    {"hypervisor"},
    {"migration"},
    {"relocation"},
    {"control"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
PURE = {"asyncio", "socket", "ssl", "subprocess", "threading", "logging", "time", "os"}
MEMORY_MAY = {"os", "mmap", "ctypes"}  # these alone:
MEMORY = {"guest.memory", "guest.memoryfile", "guest.writeback"}
DRIVERS = {"store", "xl"}
# What a guest's configuration is to xl: formats, which work where no xl is.
FORMATS = {f"hypervisor.{name}" for name in ("xlconfig", "xlcpuid", "xlguest", "xlrules", "xlsxp")}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of all that a module imports, `from a import b` as a.b as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """Return the parts of xendpy, without its name, that a module imports."""
    return {name.removeprefix("xendpy.") for name in imports(path) if name.startswith("xendpy.")}


def outside(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_imports_to_the_right(path: Path) -> None:
    layer = name_of(path).partition(".")[0]
    if layer == "__init__":
        assert not ours(path)
        return
    wrong = {
        name
        for name in ours(path)
        if (top := name.partition(".")[0]) in RANK and RANK[top] > RANK[layer]
    }
    assert not wrong


def test_every_room_has_a_rank() -> None:
    tops = {name_of(path).partition(".")[0] for path in MODULES} - {"__init__"}
    assert tops <= set(RANK)


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent.name in ("guest", "stream")], ids=name_of
)
def test_formats_do_no_io(path: Path) -> None:
    allowed = MEMORY_MAY if name_of(path) in MEMORY else set()
    assert not outside(path) & (PURE | MEMORY_MAY) - allowed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_asyncio_is_for_the_relocation_server_and_control(path: Path) -> None:
    name = name_of(path)
    if not name.startswith(("relocation.server", "control.")) and name != "control":
        assert not outside(path) & {"asyncio", "uvloop"}


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.parent.name in ("migration", "relocation")],
    ids=name_of,
)
def test_drivers_are_known_by_their_interface(path: Path) -> None:
    wrong = {f"hypervisor.{driver}" for driver in DRIVERS}
    found = {name for name in ours(path) if name.startswith(tuple(wrong))}
    assert not {name for name in found if ".".join(name.split(".")[:2]) not in FORMATS}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent.name == "stream"], ids=name_of
)
def test_only_convert_and_xend_know_several_formats(path: Path) -> None:
    formats = {name.split(".")[1].partition("_")[0] for name in ours(path) if "." in name}
    room = path.stem.partition("_")[0]
    known = formats & {"legacy", "libxc", "libxl"} - {room}
    if room == "libxl":
        known -= {"libxc"}
    if room not in ("xend", "convert", "sniff"):
        assert not known
