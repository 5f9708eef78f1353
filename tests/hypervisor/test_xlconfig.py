import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guests import guest
from xendpy import sxp
from xendpy.config import MapKind, MapRow
from xendpy.config_file import parse
from xendpy.errors import ConfigError, DomainError, StreamError
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.hypervisor.xlcfg import to_cfg
from xendpy.hypervisor.xlconfig import as_created, to_json
from xendpy.hypervisor.xldisk import XlDisk, read_disk
from xendpy.hypervisor.xlguest import XlType, read_guest
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.hypervisor.xlsxp import foreign_devices, parse_json

DATA = Path(__file__).parent.parent / "data" / "xl"
RULES = GuestRules(exists=lambda path: True)

# The guests of tests/data/xl/*.cfg as a xend wrote them; the JSON beside is a real xl's
# (Xen 4.17, `xl create -n`).
PV = """(domain (domid 3) (name web01) (uuid 1f2c7b6e-55a0-4e2f-9d1c-0a8b7c6d5e4f) (memory 512)
 (maxmem 1024) (vcpus 4) (vcpu_avail 3) (cpus ((0) (0))) (cpu_weight 512) (cpu_cap 0)
 (bootloader '') (on_poweroff destroy) (on_reboot restart) (on_crash preserve)
 (image (linux (kernel /var/lib/xen/images/vmlinuz) (ramdisk /var/lib/xen/images/initrd)
   (args 'root=/dev/xvda1 ro') (tsc_mode 2) (localtime 1) (notes (GUEST_OS linux))))
 (device (vif (bridge xenbr1) (mac 00:16:3e:12:34:56) (script /etc/xen/scripts/vif-bridge)
   (ip 10.0.0.7) (vifname web0) (rate 10Mb/s) (uuid x) (backend 0)))
 (device (vbd (dev xvda1:disk) (uname file:/var/lib/xen/images/web01.img) (mode w) (backend 0)))
 (device (tap (dev xvdb:disk) (uname tap:qcow2:/var/lib/xen/images/b.qcow2) (mode r)))
 (device (vkbd (backend 0)))
 (device (vfb (vnc 1) (vncunused 0) (vncdisplay 3) (vncpasswd secret) (vnclisten 0.0.0.0)
   (keymap de) (type vnc)))
 (device (console (protocol vt100) (location 2))))"""
HVM = """(domain (name win1) (uuid 1f2c7b6e-55a0-4e2f-9d1c-0a8b7c6d5e50) (memory 2048)
 (maxmem 2048) (vcpus 2) (vcpu_avail 3) (cpus (() ())) (shadow_memory 17) (on_poweroff destroy)
 (on_reboot restart) (on_crash restart)
 (image (hvm (kernel '') (loader /usr/lib/xen/boot/hvmloader) (videoram 8) (hpet 0) (stdvga 0)
  (xen_platform_pci 1) (nestedhvm 0) (rtc_timeoffset 3600) (hap 1) (localtime 1) (timer_mode 1)
  (apic 1) (sdl 0) (usbdevice tablet) (vpt_align 1) (vncunused 1) (boot cd) (pae 1) (viridian 1)
  (acpi 1) (vnc 1) (nographic 0) (usb 1) (serial pty) (keymap de) (soundhw es1370)
  (device_model qemu-dm) (tsc_mode 0)))
 (device (vif (bridge br0) (mac 00:16:3e:65:43:21) (type ioemu) (model e1000) (backend 0)))
 (device (vbd (dev hda:disk) (uname file:/var/lib/xen/images/win1.img) (mode w) (backend 0)))
 (device (vbd (dev hdc:cdrom) (uname 'None') (mode r) (backend storage-dom))))"""


def built(text, rules=RULES):
    return read_guest(DomainConfig.parse(text.encode()), rules)


def said(guest):
    return json.loads(to_json(guest).rstrip(b"\0"))


def without(config, *paths):
    """Return `config` without what another tool left out or added at these paths."""
    config = json.loads(json.dumps(config))
    for path in paths:
        *above, last = path.split("/")
        place = config
        for key in above:
            place = place[int(key)] if isinstance(place, list) else place.get(key, {})
        place.pop(last, None)
    return config


# What xl writes and means the default by.
DEFAULTS = ("b_info/claim_mode", "b_info/arch_arm", "b_info/arch_x86", "on_soft_reset")


@pytest.mark.parametrize(
    ("text", "name", "theirs", "ours"),
    [
        (PV, "pv", (), ("on_poweroff",)),
        (HVM, "hvm", ("b_info/type.hvm/spice", "b_info/type.hvm/rdm"), ("on_poweroff",)),
    ],
    ids=["pv", "hvm"],
)
def test_json_is_what_a_real_xl_makes_of_the_same_guest(text, name, theirs, ours):
    golden = json.loads((DATA / f"{name}.json").read_text())
    assert without(said(built(text)), *ours) == without(golden, *DEFAULTS, *theirs)


def settings(text):
    return {key.strip(): value.strip() for key, _, value in
            (line.partition(" = ") for line in text.splitlines()) if value}  # fmt: skip


@pytest.mark.parametrize(("text", "name"), [(PV, "pv"), (HVM, "hvm")])
def test_cfg_says_what_the_cfg_of_the_same_guest_says(text, name):
    theirs = settings((DATA / f"{name}.cfg").read_text())
    ours = settings(to_cfg(built(text)))
    for key in ("name", "uuid", "type", "kernel", "ramdisk", "cmdline", "memory", "localtime",
                "boot", "serial", "usbdevice", "keymap", "timer_mode"):  # fmt: skip
        assert ours.get(key) == theirs.get(key), key
    assert ours["disk"].count("vdev=") == theirs["disk"].count("vdev=")


@pytest.mark.parametrize("name", ["pv", "hvm", "pvh"])
def test_libxls_json_comes_back_after_a_trip_through_xends_configuration(name):
    golden = json.loads((DATA / f"{name}.json").read_text())
    config = parse_json((DATA / f"{name}.json").read_bytes() + b"\0")
    again = DomainConfig.parse(sxp.encode(config.tree))
    guest = read_guest(again, replace(RULES, confined=False))
    skip = [*DEFAULTS, "on_poweroff", "on_crash", "b_info/type.hvm/spice", "b_info/type.hvm/rdm",
            "b_info/sched_params"]  # fmt: skip
    ours = without(said(guest), *skip)
    theirs = without(golden, *skip)
    for key in ("c_info", "b_info", "disks", "nics", "vfbs"):
        assert ours.get(key) == theirs.get(key), key


def test_video_memory_too_small_for_todays_qemu_is_left_to_xl():
    assert "videoram = 8\n" in to_cfg(built(HVM.replace("storage-dom", "0")))
    small = HVM.replace("storage-dom", "0").replace("(videoram 8)", "(videoram 4)")
    assert "videoram" not in to_cfg(built(small))
    # The same guest, when it moves on: libxl refuses a save file that asks for so little.
    started = as_created(DomainConfig.parse(small.encode()))
    assert "video_memkb" not in said(read_guest(started, RULES))["b_info"]
    assert said(built(small))["b_info"]["video_memkb"] == 4 << 10  # qemu-traditional's


def test_a_guest_that_was_created_here_tells_of_its_device_model():
    text = HVM.replace("storage-dom", "0")
    started = as_created(DomainConfig.parse(text.encode()))
    assert built(text).device_model == "qemu-xen-traditional"
    assert read_guest(started, RULES) == replace(built(text), device_model="qemu-xen")
    assert as_created(DomainConfig.parse(PV.encode())).tree == DomainConfig.parse(PV.encode()).tree


def test_a_pvh_guest_is_no_pv_guest_to_a_xend():
    config = parse_json((DATA / "pvh.json").read_bytes())
    assert config.guest_type is GuestType.HVM
    assert read_guest(config, RULES).type is XlType.PVH


def test_vnc_listens_on_this_host_alone():
    assert said(built(PV))["vfbs"][0]["vnc"]["listen"] == "127.0.0.1"
    assert "0.0.0.0" not in to_cfg(built(PV))


@pytest.mark.parametrize(
    ("was", "value"),
    [
        ("serial pty", "serial file:/etc/cron.d/x"),
        ("usbdevice tablet", "usbdevice host:046d:c016"),
        ("soundhw es1370", "soundhw 'es1370,id=/x y'"),
        ("boot cd", "boot 'c,menu=on'"),
    ],
)
def test_what_qemu_would_open_is_refused_unless_the_operator_says_it(was, value):
    text = HVM.replace("(backend storage-dom)", "(backend 0)")
    key, _, said = value.partition(" ")
    bad = text.replace(was, value)
    with pytest.raises(
        DomainError, match=re.escape(f"{key} {said.strip(chr(39))} is not allowed")
    ):
        built(bad)
    assert built(bad, replace(RULES, confined=False)).texts[key] == said.strip("'")


CPUID = f"(cpuid ((1 ((ecx {'x' * 32}) (edx 0xf))) (7,0 ((ebx {'0' * 32})))))"
LEAVES = [{"leaf": 1, "ecx": "x" * 32, "edx": "0" * 28 + "1111"},
          {"leaf": 7, "subleaf": 0, "ebx": "0" * 32}]  # fmt: skip


def test_cpuid_is_told_in_each_format():
    guest = built(PV.replace("(cpu_cap 0)", f"(cpu_cap 0) {CPUID}"))
    config = said(guest)
    assert config["b_info"]["cpuid"] == LEAVES
    assert f'"0x1:ecx={"x" * 32},edx={"0" * 28}1111", "0x7,0x0:ebx={"0" * 32}"' in to_cfg(guest)
    assert read_guest(parse_json(to_json(guest)), RULES).cpuid == guest.cpuid


def test_cpuid_is_understood_as_xl_of_today_prints_it():
    guest = built(PV.replace("(cpu_cap 0)", f"(cpu_cap 0) {CPUID}"))
    config = said(guest)
    config["b_info"]["cpuid"] = {"cpuid": LEAVES, "msr": []}
    assert read_guest(parse_json(json.dumps(config).encode()), RULES).cpuid == guest.cpuid
    config["b_info"]["cpuid"] = {"cpuid": [], "msr": []}
    assert read_guest(parse_json(json.dumps(config).encode()), RULES).cpuid == ()


@pytest.mark.parametrize("row", ["(one ((eax 0x1)))", "(1 ((efl 0x1)))", "(1 ((eax 01)))", "1"])
def test_cpuid_that_is_none_is_refused(row):
    with pytest.raises(DomainError, match=r"cpuid .* is not understood"):
        built(PV.replace("(cpu_cap 0)", f"(cpu_cap 0) (cpuid ({row}))"))


DISKS = [
    ("phy:vg0/a", "xvda:disk", "w", XlDisk(vdev="xvda", path="/dev/vg0/a", writable=True)),
    ("phy:/dev/vg0/a", "xvda", "r", XlDisk(vdev="xvda", path="/dev/vg0/a")),
    ("tap:aio:/dev/x", "hda:disk", "w!", XlDisk(vdev="hda", path="/dev/x", writable=True)),
    ("tap2:vhd:/dev/x", "hda:disk", "w",
     XlDisk(vdev="hda", path="/dev/x", format="vhd", writable=True)),
    ("tap:tapdisk:qcow:/dev/x", "ioemu:hda:disk", "r",
     XlDisk(vdev="hda", path="/dev/x", format="qcow")),
    ("file:/dev/cd.iso", "hdc:cdrom", "w", XlDisk(vdev="hdc", path="/dev/cd.iso", cdrom=True)),
    ("", "hdc:cdrom", "r", XlDisk(vdev="hdc", path="", format="empty", cdrom=True)),
    ("file:/dev/x", "769", "r", XlDisk(vdev="769", path="/dev/x")),
]  # fmt: skip


@pytest.mark.parametrize(("uname", "dev", "mode", "disk"), DISKS)
def test_disks(uname, dev, mode, disk):
    device = ["vbd", ["uname", uname], ["dev", dev], ["mode", mode]]
    assert read_disk("g", device, RULES) == disk


BAD_DISKS = [
    ("tap:vmdk:/dev/x", "xvda", "no driver vmdk"),
    ("nbd:host:1", "xvda", "of a kind that is not known"),
    ("file:/dev/x", "xvda,target=/etc/shadow", "has the device"),
    ("file:/dev/x, script=/tmp/evil", "xvda", "characters that no path should have"),
    ("file:/etc/shadow", "xvda", "disk /etc/shadow is not below"),
    ("phy:../etc/shadow", "xvda", "is not below"),
]


@pytest.mark.parametrize(("uname", "dev", "text"), BAD_DISKS)
def test_bad_disks_are_named(uname, dev, text):
    with pytest.raises(DomainError, match=re.escape(text)):
        read_disk("g", ["vbd", ["uname", uname], ["dev", dev]], RULES)


def test_a_link_out_of_the_images_is_not_followed(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret").touch()
    (tmp_path / "images/disk.img").symlink_to(tmp_path / "secret")
    rules = GuestRules(guest_paths=(str(tmp_path / "images"),))
    with pytest.raises(DomainError, match="is not below"):
        rules.disk("g", str(tmp_path / "images/disk.img"))


MAPS = tuple(
    MapRow(kind, old, new)
    for kind, old, new in (
        (MapKind.BRIDGE, "xenbr1", "br0"),
        (MapKind.DISK, "/srv/xen", "/dev/vg0"),
        (MapKind.KERNEL, "/boot", "/var/lib/xen/images/boot"),
        (MapKind.SCRIPT, "vif-wrapper", "vif-bridge"),
    )
)


def test_mapping_rows_are_applied():
    rules = GuestRules(maps=MAPS, exists=lambda path: True)
    text = (
        PV.replace("file:/var/lib/xen/images/web01.img", "file:/srv/xen/web01")
        .replace("/var/lib/xen/images/vmlinuz", "/boot/vmlinuz")
        .replace("vif-bridge", "vif-wrapper")
    )
    found = built(text, rules)
    assert found.disks[0].path == "/dev/vg0/web01"
    assert found.boot.kernel == "/var/lib/xen/images/boot/vmlinuz"
    assert (found.nics[0].bridge, found.nics[0].script) == ("br0", "vif-bridge")


def test_a_row_maps_whole_directories_only():
    rules = GuestRules(maps=MAPS, confined=False)
    assert rules.disk("g", "/srv/xenial/a") == "/srv/xenial/a"


def test_rows_of_the_configuration_file():
    loaded = parse(
        "(xendpy-map-bridge xenbr1 br0)\n(xendpy-map-bridge xenbr1 br1)\n"
        "(xendpy-map-disk /srv/xen /dev/vg0)\n(xendpy-guest-paths '/srv /dev')",
        Path("x"),
    )
    assert loaded.config.maps == (
        MapRow(MapKind.BRIDGE, "xenbr1", "br0"),
        MapRow(MapKind.DISK, "/srv/xen", "/dev/vg0"),
    )
    assert [warning.line for warning in loaded.warnings if "again" in warning.text] == [2]
    assert GuestRules.of(loaded.config).guest_paths == ("/srv", "/dev")


@pytest.mark.parametrize("text", ["(xendpy-map-bridge a)", "(xendpy-guest-paths 'srv')",
                                  "(xendpy-guest-paths /)"])  # fmt: skip
def test_bad_rows_are_errors(text):
    with pytest.raises(ConfigError):
        parse(text, Path("x"))


def test_what_a_xend_cannot_carry_is_found():
    assert foreign_devices({"pcidevs": [{}], "disks": [{}], "usbdevs": []}) == ["pcidevs"]


@pytest.mark.parametrize("text", [b"", b"[]", b'{"c_info": 1}', b"\xff"])
def test_other_json_is_an_error(text):
    with pytest.raises(StreamError):
        parse_json(text)


def test_json_without_memory_is_an_error():
    with pytest.raises(DomainError, match="not understood"):
        parse_json(b'{"c_info": {"type": "pv", "name": "a"}, "b_info": {}}')


def test_a_text_cannot_leave_its_quotes():
    config = guest().encode().replace(b"(args 'ro')", b"(args 'a\"; disk=\\\\')")
    text = to_cfg(read_guest(DomainConfig.parse(config), replace(RULES, confined=False)))
    assert 'cmdline = "a\\"; disk=\\\\"\n' in text


@pytest.mark.parametrize(
    ("was", "said", "text"),
    [
        ("secret", "'x,vnclisten=0.0.0.0'", "vfb vncpasswd cannot be told to xl"),
        ("secret", "'x\"'", "vfb vncpasswd cannot be told to xl"),
        ("secret", "'x\ny=1'", "vfb vncpasswd cannot be told to xl"),
        ("/etc/xen/scripts/vif-bridge", "'/opt/vif,backend=web2'", "vif script cannot be told"),
    ],
)
def test_no_value_becomes_an_option(was, said, text):
    assert PV.count(was) == 1
    own = replace(RULES, confined=False)
    with pytest.raises(DomainError, match=text):
        to_cfg(built(PV.replace(was, said), own))


def test_a_line_break_begins_no_setting():
    raw = PV.replace("'root=/dev/xvda1 ro'", "'ro\ndevice_model_override = /tmp/x'")
    text = to_cfg(built(raw))
    assert 'cmdline = "ro\\ndevice_model_override = /tmp/x"\n' in text


@pytest.mark.parametrize(
    ("cpus", "cfg", "json"),
    [
        ("((0 2) (3))", 'cpus = ["0,2", "3"]', [[0, 2], [3]]),
        ("(0 1)", 'cpus = ["0,1", "0,1"]', [[0, 1], [0, 1]]),
        ("0-1", 'cpus = ["0,1", "0,1"]', [[0, 1], [0, 1]]),
        ("((3) ())", 'cpus = ["3", "all"]', None),
        ("(() ())", None, None),
        ("0-x", None, None),
        ("0-9999999999", None, None),
        ("(any cpu)", None, None),
    ],
)
def test_cpus_of_every_release(cpus, cfg, json):
    guest = built(
        PV.replace("(vcpus 4)", "(vcpus 2)").replace("(cpus ((0) (0)))", f"(cpus {cpus})")
    )
    lines = [line for line in to_cfg(guest).splitlines() if line.startswith("cpus")]
    assert lines == ([cfg] if cfg else [])
    assert said(guest)["b_info"].get("vcpu_hard_affinity") == json


@pytest.mark.parametrize(
    ("said", "vnc"),
    [
        ("(vncdisplay 3)", {"display": 3, "findunused": "True"}),
        ("(vncdisplay 3) (vncunused 1)", {"display": 3, "findunused": "True"}),
        ("(vncdisplay 3) (vncunused 0)", {"display": 3, "findunused": "False"}),
        ("(vncdisplay 0) (vncunused 1)", {"findunused": "True"}),
        ("(vncdisplay 0) (vncunused 0)", {"display": 0, "findunused": "False"}),
        ("(vncunused 0)", {"findunused": "True"}),
    ],
)
def test_a_display_that_was_asked_for_is_tried_first(said, vnc):
    guest = built(PV.replace("(vncunused 0) (vncdisplay 3)", said))
    (vfb,) = json.loads(to_json(guest).rstrip(b"\0"))["vfbs"]
    assert {key: vfb["vnc"].get(key) for key in vnc} == vnc and ("display" in vfb["vnc"]) == (
        "display" in vnc
    )


@pytest.mark.parametrize(
    ("said", "weight"), [("1.0", None), ("256", 256), ("0", None), ("", None)]
)
def test_a_share_of_xen_3_0_is_no_weight(said, weight):
    guest = built(PV.replace("(cpu_weight 512)", f"(cpu_weight {said})"))
    built_as = json.loads(to_json(guest).rstrip(b"\0"))["b_info"].get("sched_params", {})
    assert built_as.get("weight") == weight


def test_more_disks_than_the_alphabet_has_letters():
    assert "vdev=xvdaa1," in to_cfg(built(PV.replace("dev xvda1", "dev xvdaa1")))
