import json
import re
from pathlib import Path

import pytest

from tests.guests import guest
from tests.peers.xl_driver import driver
from xendpy.config import MapKind, MapRow
from xendpy.config_file import parse
from xendpy.errors import DomainError
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.xlcfg import to_cfg
from xendpy.hypervisor.xlconfig import to_json
from xendpy.hypervisor.xlguest import read_guest
from xendpy.hypervisor.xlnic import Rate, bridge_is_missing, read_nic, read_rate
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.hypervisor.xlsxp import parse_json

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


RATES = [
    ("10Mb/s", 62_500, 50_000, "1250KB/s@50000us"),  # as in tests/data/xl/pv.cfg
    ("10Mb/s@50ms", 62_500, 50_000, "1250KB/s@50000us"),
    ("62500,50000", 62_500, 50_000, "1250KB/s@50000us"),  # as xend shows it, Xen 3.1 - 4.4
    ("1250KB/s@50ms", 62_500, 50_000, "1250KB/s@50000us"),  # 3.0.3
    ("1GB/s@1s", 10**9, 10**6, "1GB/s@1000000us"),
    ("1,3", 1, 3, "333334B/s@3us"),  # nothing is lost by rounding
    ("4294967295,1000", 4_294_967_295, 1000, "4294967295KB/s@1000us"),
]


@pytest.mark.parametrize(("text", "length_bytes", "interval_usecs", "told"), RATES)
def test_rates(text, length_bytes, interval_usecs, told):
    rate = read_rate(text)
    assert rate == Rate(length_bytes, interval_usecs)
    assert str(rate) == told
    assert read_rate(told) == rate


@pytest.mark.parametrize("text", ["", "10", "fast", "10Mb/s@0ms", "4294967295,0", "0B/s",
                                  "99999999GB/s", "1B/s@99999s"])  # fmt: skip
def test_what_no_xend_took_for_a_rate_limits_nothing(text):
    assert read_rate(text) is None


def test_a_rate_is_told_in_each_format():
    raw = guest().encode().replace(b"(bridge xenbr0)", b"(bridge xenbr0) (rate 62500,50000)")
    built = read_guest(DomainConfig.parse(raw), RULES)
    (nic,) = json.loads(to_json(built).rstrip(b"\0"))["nics"]
    assert (nic["rate_bytes_per_interval"], nic["rate_interval_usecs"]) == (62_500, 50_000)
    assert "rate=1250KB/s@50000us" in to_cfg(built)
    back = parse_json(to_json(built))
    (vif,) = (device for kind, device in back.devices() if kind == "vif")
    assert ["rate", "1250KB/s@50000us"] in vif  # a xend reads no other form than it is written in
    assert read_guest(back, RULES).nics == built.nics
