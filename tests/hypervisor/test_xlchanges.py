"""What xl says of a guest that has changed since it came."""

import copy

import pytest

from tests.guests import UUID
from xendpy.config import MapKind, MapRow
from xendpy.errors import DomainError
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.xlchanges import brought_up
from xendpy.hypervisor.xlrules import GuestRules

MAPS = (
    MapRow(MapKind.BRIDGE, "xenbr1", "br0"),
    MapRow(MapKind.DISK, "/var/lib/xen/images", "/srv/images"),
)
RULES = GuestRules(maps=MAPS)
DISK = b"(device (tap (dev xvda:disk) (uname tap:aio:/var/lib/xen/images/web.img) (mode w!)))"
CDROM = b"(device (vbd (dev hdc:cdrom) (uname file:/srv/one.iso) (mode r)))"
NICS = (
    b"(device (vif (bridge xenbr1) (mac 00:16:3E:AA:00:01) (script vif-lab) (backend 0)))"
    b"(device (vif (bridge xenbr0)))"
)
NOTED = DomainConfig.parse(
    b"(domain (on_xend_start start) (uuid %b) (name web01) (memory 64) (maxmem 96.0) (vcpus 4)"
    b" (vcpu_avail 3) (image (linux (kernel /boot/vm))) %b %b %b (device (vkbd (backend 0))))"
    % (UUID.upper().encode(), DISK, CDROM, NICS)
)
# What libxl has of it on this host.
NOW = {
    "c_info": {"type": "pv", "name": "web01", "uuid": UUID},
    "b_info": {
        "max_vcpus": 4,
        "avail_vcpus": [0, 1],
        "max_memkb": 96 << 10,
        "target_memkb": 64 << 10,
        "cpuid": "a form that nobody knows",
    },
    "disks": [
        {"vdev": "xvda", "pdev_path": "/srv/images/web.img", "format": "raw", "readwrite": 1},
        {"vdev": "hdc", "pdev_path": "/srv/one.iso", "removable": 1, "is_cdrom": 1},
    ],
    "nics": [
        {"devid": 0, "mac": "00:16:3e:aa:00:01", "bridge": "br0", "script": "vif-bridge"},
        {"devid": 1, "mac": "00:16:3e:bb:00:02", "bridge": "xenbr0"},
    ],
    "vkbs": [{"devid": 0}],
}


def brought(change=lambda now: None, noted=NOTED, name="web01"):
    now = copy.deepcopy(NOW)
    change(now)
    return brought_up(noted, now, RULES, name=name)


def names(config):
    return [
        (kind, next(item[1] for item in device[1:] if item[0] in ("dev", "bridge", "backend")))
        for kind, device in config.devices()
    ]


def added(config):
    """Return what stands in a configuration that did not before, and what no longer does."""
    return (
        [item for item in config.tree if item not in NOTED.tree],
        [item for item in NOTED.tree if item not in config.tree],
    )


def built(**values):
    return lambda now: now["b_info"].update(values)


def test_a_guest_that_has_not_changed_keeps_its_bytes():
    assert brought() is NOTED


@pytest.mark.parametrize("kb", [(64 << 10) - 1, (64 << 10) + 1023])
def test_what_libxl_rounds_is_no_change(kb):
    assert brought(built(target_memkb=kb)) is NOTED


def test_a_disk_that_was_attached_comes_along():
    def attach(now):
        now["disks"].append({"vdev": "xvdb", "pdev_path": "/srv/images/data", "readwrite": 1})

    attached = ["vbd", ["dev", "xvdb:disk"], ["uname", "file:/srv/images/data"], ["mode", "w"]]
    assert added(brought(attach)) == ([["device", [*attached, ["backend", "0"]]]], [])


def test_a_disk_that_was_detached_does_not():
    config = brought(lambda now: now["disks"].pop(0))
    ((_, gone),) = added(config)[1]
    assert (added(config)[0], gone[1]) == ([], ["dev", "xvda:disk"])


@pytest.mark.parametrize(
    ("change", "uname"),
    [
        ({"pdev_path": "/srv/two.iso"}, "file:/srv/two.iso"),
        ({"pdev_path": "", "format": "empty"}, "None"),
    ],
)
def test_another_medium_is_told(change, uname):
    ((_, disk),) = added(brought(lambda now: now["disks"][1].update(change)))[0]
    assert ["uname", uname] in disk
    assert ["dev", "hdc:cdrom"] in disk


def test_a_disk_that_became_read_only_is():
    ((_, disk),) = added(brought(lambda now: now["disks"][0].pop("readwrite")))[0]
    assert ["mode", "r"] in disk


def test_interfaces_come_and_go():
    def change(now):
        del now["nics"][0]
        now["nics"].append({"devid": 2, "mac": "00:16:3e:cc:00:03", "bridge": "br9"})

    config = brought(change)
    assert [name for kind, name in names(config) if kind == "vif"] == ["xenbr0", "br9"]
    ((_, gone),) = added(config)[1]
    assert ["mac", "00:16:3E:AA:00:01"] in gone


def test_an_interface_without_a_mac_is_known_by_its_devid():
    config = brought(lambda now: now["nics"].pop(1))
    ((_, gone),) = added(config)[1]
    assert gone == ["vif", ["bridge", "xenbr0"]]


def test_an_interface_on_another_bridge_is_told():
    config = brought(lambda now: now["nics"][0].update(bridge="br7"))
    ((_, nic),) = added(config)[0]
    assert ["bridge", "br7"] in nic


def test_memory_and_vcpus_are_those_of_the_moment():
    config = brought(built(target_memkb=48 << 10, avail_vcpus=[0, 1, 2]))
    assert (config.memory_mib, config.maxmem_mib) == (48, 96)
    assert (config.vcpus, config.online_vcpus) == (4, 3)
    assert config.text("on_xend_start") == "start"
    assert brought(built(max_memkb=128 << 10)).maxmem_mib == 128


def test_a_name_that_xend_could_have_is_todays():
    assert brought(name="web02").name == "web02"
    assert brought(name="web 02") is NOTED


def test_what_is_not_understood_of_the_devices_is_an_error():
    with pytest.raises(DomainError, match="libxl's configuration is not understood"):
        brought(lambda now: now["disks"].append({"pdev_path": "/srv/x"}))
