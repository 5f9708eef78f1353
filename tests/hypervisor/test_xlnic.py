import re
from pathlib import Path

import pytest

from tests.guests import guest
from tests.peers.xl_driver import driver
from xendpy.config import MapKind, MapRow
from xendpy.config_file import parse
from xendpy.errors import DomainError
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.xlconfig import to_cfg, to_json
from xendpy.hypervisor.xlguest import read_guest
from xendpy.hypervisor.xlnic import bridge_is_missing, read_nic
from xendpy.hypervisor.xlrules import GuestRules

HERE = "/sys/class/net/br0/bridge"
SCRIPT_DIR = "/etc/xen/scripts/"


def on_this_host(path):
    return path == HERE or path.startswith(SCRIPT_DIR)


RULES = GuestRules(exists=on_this_host, guest_paths=("/boot",))
OWN = GuestRules(exists=on_this_host, confined=False)
MAPPED = GuestRules(exists=on_this_host, maps=(MapRow(MapKind.BRIDGE, "", "br0"),))
ABSENT = "a vif names no bridge, and xenbr0 does not exist here: see (xendpy-map-bridge '' NEW)"

BRIDGES = [
    ("named", RULES, "br0", "", "br0", ""),
    ("gone", RULES, "br1", "", "br1", "bridge br1 does not exist here: see xendpy-map-bridge"),
    ("none", RULES, "", "", "xenbr0", ABSENT),
    ("none, script", RULES, "", "vif-bridge", "xenbr0", ABSENT),
    ("none, mapped", MAPPED, "", "", "br0", ""),
    ("named, none mapped", MAPPED, "br1", "", "br1", "bridge br1 does not exist here"),
    ("none, routed", MAPPED, "", "vif-route", "", ""),
    ("named, routed", RULES, "br1", "vif-route", "br1", ""),
    ("open vswitch", RULES, "ovs0", "vif-openvswitch", "ovs0", ""),
    ("none, open vswitch", RULES, "", "vif-openvswitch", "xenbr0", ""),
    ("this host's own", OWN, "", "/etc/xen/scripts/vif-bridge", "", ""),  # xl.conf may name one
]


@pytest.mark.parametrize(
    ("rules", "named", "script", "bridge", "missing"),
    [row[1:] for row in BRIDGES],
    ids=[row[0] for row in BRIDGES],
)
def test_bridges(rules, named, script, bridge, missing):
    nic = read_nic("g", ["vif", ["bridge", named], ["script", script]], rules)
    assert nic.bridge == bridge
    said = bridge_is_missing(nic, rules)
    assert said.startswith(missing) and bool(said) == bool(missing)


def without_a_bridge():
    return DomainConfig.parse(guest().encode().replace(b"(bridge xenbr0) ", b""))


def test_the_default_bridge_is_said_to_xl():
    built = read_guest(without_a_bridge(), RULES)
    assert b'"bridge": "xenbr0"' in to_json(built)
    assert "bridge=xenbr0" in to_cfg(built)


def test_a_guest_without_a_bridge_is_refused_before_the_first_page(tmp_path, xl):
    hypervisor = driver(tmp_path, xl, exists=on_this_host)
    with (
        pytest.raises(DomainError, match=re.escape(ABSENT)),
        hypervisor.restore(without_a_bridge()),
    ):
        raise AssertionError("let in")
    assert hypervisor.place(without_a_bridge()).objections == (ABSENT,)
    hypervisor.close()


def test_a_guest_without_a_bridge_comes_in_where_it_is_mapped(tmp_path, xl):
    hypervisor = driver(tmp_path, xl, exists=on_this_host, maps=MAPPED.maps)
    with hypervisor.restore(without_a_bridge()):
        pass
    assert hypervisor.place(without_a_bridge()).objections == ()
    hypervisor.close()


def test_a_row_for_no_bridge():
    loaded = parse("(xendpy-map-bridge '' br0)", Path("x"))
    assert loaded.config.maps == MAPPED.maps
