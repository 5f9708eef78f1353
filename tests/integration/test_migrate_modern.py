"""Guests of xl in the embedded store: they rest there, and leave as they came, or as a xend's."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import modern, recorded
from tests.peers.hosts import Host, pair
from tests.peers.xend_receiver import XendReceiver
from tests.streams import PAGE

ENDS = 16  # the last records, without bodies: the image's and the stream's
TSC_AUX = modern.vcpu(modern.MSRS, 0, struct.pack("<IIQ", 0xC0000103, 0, 1))

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    with pair(tmp_path_factory.mktemp("hosts")) as both:
        yield both


@pytest.fixture(autouse=True)
def nothing_left(hosts: tuple[Host, Host]) -> Iterator[None]:
    yield
    for host in hosts:
        assert host.in_doubt() == []
        for guest in host.guests():
            host.call("xend.domain.destroy", guest)


def rest(host: Host, root: Path, data: bytes) -> str:
    """Have a guest come from a save file; return its name."""
    file = root / "came.xl"
    file.write_bytes(data)
    host.xm("restore", "--force", str(file))
    (name,) = host.guests()
    return name


def inspected(host: Host, file: Path) -> dict[str, Any]:
    """Return what `xm inspect` finds, but for the file itself and how pages are batched."""
    shown = host.xm("inspect", "--json", str(file), check=False).stdout  # pages were cut out: 1
    found: dict[str, Any] = json.loads(shown)
    del found["records"]["Pages"]
    return {key: found[key] for key in ("stream", "records", "memory", "anomalies")}


def saved(host: Host, root: Path, name: str) -> Path:
    file = root / "left.xl"
    host.xm("save", name, str(file))
    assert host.guests() == []
    return file


@pytest.mark.parametrize("name", [recorded.XL_PV, recorded.XL_PVH])
def test_a_guest_of_xl_is_saved_as_it_came(
    hosts: tuple[Host, Host], tmp_path: Path, name: str
) -> None:
    here, _ = hosts
    guest = rest(here, tmp_path, recorded.xl_save(name))
    left = saved(here, tmp_path, guest)
    assert inspected(here, left) == inspected(here, tmp_path / "came.xl")
    here.xm("restore", str(left))
    assert here.guests() == [guest]


@pytest.mark.parametrize("name", [recorded.XL_PV, recorded.XL_PVH])
def test_a_guest_of_xl_is_passed_on_as_it_came(
    hosts: tuple[Host, Host], tmp_path: Path, name: str
) -> None:
    here, there = hosts
    guest = rest(here, tmp_path, recorded.xl_save(name))
    here.xm("migrate", guest, "et-virt08")
    assert (here.guests(), there.guests()) == ([], [guest])
    left = saved(there, tmp_path, guest)
    assert inspected(here, left) == inspected(here, tmp_path / "came.xl")


def test_a_pv_guest_of_xl_goes_to_an_old_xend(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    here, _ = hosts
    guest = rest(here, tmp_path, recorded.xl_save(recorded.XL_PV))
    here.xm("save", "-c", guest, str(tmp_path / "left.xl"))
    here.xm("extract", str(tmp_path / "left.xl"), str(tmp_path / "memory"))
    with XendReceiver() as old:
        here.xm("migrate", "-p", str(old.port), guest, old.address)
    (came,) = old.received
    assert here.guests() == []
    memory = (tmp_path / "memory").read_bytes()
    for pfn, digest in came.pages.items():
        page = memory[pfn * PAGE : (pfn + 1) * PAGE]
        assert digest == hashlib.sha256(page).hexdigest(), pfn
    kinds = {type(record).__name__ for record in came.records}
    assert {"OnlineVcpus", "UnmappedPfns", "VcpuContext", "SharedInfo"} <= kinds


def test_registers_without_a_place_are_left_out_only_if_asked(
    hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    here, _ = hosts
    data = recorded.xl_save(recorded.XL_PV)
    guest = rest(here, tmp_path, data[:-ENDS] + TSC_AUX + data[-ENDS:])
    with XendReceiver() as old:
        argv = ("migrate", "-p", str(old.port), guest, old.address)
        refused = here.xm(*argv, check=False)
        assert refused.returncode == 1
        assert "the MSRs of vcpu 0 in a legacy stream (--lossy leaves them out)" in refused.stderr
        assert f"{guest} goes on here." in refused.stderr
        assert here.guests() == [guest]
    with XendReceiver() as old:
        here.xm("migrate", "--lossy", "-p", str(old.port), guest, old.address)
    assert here.guests() == []
    assert len(old.received) == 1


def test_a_pvh_guest_is_not_for_an_old_xend(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    here, _ = hosts
    guest = rest(here, tmp_path, recorded.xl_save(recorded.XL_PVH))
    with XendReceiver() as old:
        refused = here.xm("migrate", "-p", str(old.port), guest, old.address, check=False)
    assert refused.returncode == 1
    assert "a HVM guest without device-model state in a legacy stream" in refused.stderr
    assert here.guests() == [guest]
