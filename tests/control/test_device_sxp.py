from __future__ import annotations

import pytest

from tests.control.fakes import FakeHypervisor, guest_config
from xendpy.control.device_sxp import device_class, device_entries, disk_number
from xendpy.errors import RpcError
from xendpy.guest.domain import DomainSummary

# xen-vbd-interface(7)
NUMBERS = [
    ("xvda", 51712),
    ("xvda1", 51713),
    ("xvdb:disk", 51728),
    ("xvdp15", 51967),
    ("xvdq", 268439552),
    ("xvda16", 268435472),
    ("hda", 768),
    ("hdb", 832),
    ("hdc:cdrom", 5632),
    ("hdd1", 5697),
    ("sda", 2048),
    ("/dev/sdb2", 2066),
    ("51712", 51712),
    ("sdz", None),
    ("hdz", None),
    ("floppy", None),
    ("", None),
]


@pytest.mark.parametrize(("name", "number"), NUMBERS)
def test_disk_has_xens_number(name: str, number: int | None) -> None:
    assert disk_number(name) == number


@pytest.fixture
def guest() -> DomainSummary:
    hypervisor = FakeHypervisor()
    return hypervisor.guests[hypervisor.add(guest_config("web1")).uuid]


def test_devices_are_listed_by_class(guest: DomainSummary) -> None:
    assert device_entries(guest, "vif") == [
        ["0", [
            ["backend-id", "0"],
            ["handle", "0"],
            ["state", "1"],
            ["backend", "/local/domain/0/backend/vif/1/0"],
            ["mac", "00:16:3e:11:22:33"],
            ["protocol", "x86_64-abi"],
        ]]
    ]  # fmt: skip
    ((number, values),) = device_entries(guest, "vbd")  # type: ignore[misc]
    assert number == "51712"
    assert ["device-type", "disk"] in values  # type: ignore[operator]
    assert device_entries(guest, "vtpm") == []


@pytest.mark.parametrize("name", ["xvda", "51712"])
def test_disk_is_found_by_name_or_number(name: str, guest: DomainSummary) -> None:
    assert device_class(guest, name) == "vbd"


def test_missing_disk_is_a_fault(guest: DomainSummary) -> None:
    with pytest.raises(RpcError, match="failed to find device 'xvdz'"):
        device_class(guest, "xvdz")
