"""Domain XML: valid to libvirt's own schema, and the same guest when it is read back."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.recorded import HVM, PV64, load
from xendpy import sxp
from xendpy.control.libvirt.domain_xml import to_xml
from xendpy.control.libvirt.xml_config import from_xml
from xendpy.control.managed import inactive
from xendpy.control.new_config import new_config
from xendpy.errors import RpcError
from xendpy.guest.domain import DomainConfig, DomainState, DomainSummary


def _recorded(name: str) -> bytes:
    """Return the configuration that a real xend sent."""
    wire, _ = load(name)
    (length,) = struct.unpack_from(">I", wire, len(MAGIC))
    return wire[len(MAGIC) + 4 :][:length]


MAGIC = b"LinuxGuestRecord"
COMMON = (
    "(name web01) (uuid 1f2c7b6e-55a0-4e2f-9d1c-0a8b7c6d5e4f) (memory 512) (maxmem 1024) (vcpus 4)"
)
GUESTS = {
    "recorded-pv": _recorded(PV64),
    "recorded-hvm": _recorded(HVM),
    "test-guest": f"(domain {COMMON} (image (linux (kernel xendpy:ticker) (args tick=1))))",
    "pygrub": f"""(domain {COMMON} (bootloader /usr/bin/pygrub) (bootloader_args '-q')
      (on_poweroff coredump-destroy) (on_crash coredump-restart) (image (linux (kernel '')))
      (device (tap (uname tap:aio:/srv/a.img) (dev xvda:disk) (mode w)))
      (device (tap2 (uname tap2:tapdisk:qcow2:/srv/b.img) (dev xvdb) (mode r)))
      (device (vbd (uname phy:vg0/data) (dev xvdc1) (mode w!)))
      (device (vif (mac 00:16:3e:11:22:33) (bridge xenbr1) (script vif-bridge) (vifname v0)))
      (device (vif (mac 00:16:3e:11:22:34)))
      (device (vfb (type vnc) (vncunused 0) (vncdisplay 3) (keymap de) (vnclisten 0.0.0.0)))
      (device (vkbd)) (device (console (protocol vt100))))""",
    "pv-of-3.0": f"""(domain {COMMON} (image (linux (kernel /boot/k) (ip 10.0.0.7:1.2.3.4::::eth0:)
        (root '/dev/sda1 ro') (args 4))))""",
    "nothing-to-boot": f"(domain {COMMON} (image (linux)))",
    "hvm-of-3.0": f"""(domain {COMMON} (image (hvm (kernel /usr/lib/xen/boot/hvmloader) (boot dc)
        (acpi 1) (apic 0) (pae 1) (vnc 1) (vncunused 1) (localtime 1)))
      (device (vbd (uname file:/srv/w.img) (dev ioemu:hda:disk) (mode w)))
      (device (vbd (uname '') (dev hdc:cdrom) (mode r)))
      (device (vif (mac 00:16:3e:11:22:35) (bridge br0) (type ioemu) (model rtl8139)))
      (device (vif (mac 00:16:3e:11:22:36) (bridge br0))))""",
    "disks-by-number": f"""(domain {COMMON} (image (linux (kernel /boot/k) (ramdisk initrd)))
      (device (vbd (uname phy:/dev/sda) (dev 0x0301) (mode w)))
      (device (vbd (uname phy:/dev/sdb) (dev 5696) (mode w)))
      (device (vbd (uname phy:/dev/sdc) (dev 51728) (mode w))))""",
}


def summary(text: str | bytes) -> DomainSummary:
    config = DomainConfig.parse(text.encode() if isinstance(text, str) else text)
    return DomainSummary(
        domid=3,
        uuid=config.uuid,
        name=config.name,
        state=DomainState.RUNNING,
        memory_mib=config.memory_mib,
        maxmem_mib=config.maxmem_mib,
        vcpus=config.vcpus,
        online_vcpus=1,
        cpu_time_s=1.0,
        start_time_s=0.0,
        config=config,
    )


@pytest.mark.skipif(
    shutil.which("virt-xml-validate") is None, reason="needs Debian's libvirt-clients"
)
@pytest.mark.parametrize("name", GUESTS)
def test_the_schema_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    file = tmp_path / "domain.xml"
    for text in (to_xml(summary(GUESTS[name])), _again(GUESTS[name])):
        file.write_text(text)
        done = subprocess.run(
            ["virt-xml-validate", str(file), "domain"], capture_output=True, text=True
        )
        assert done.returncode == 0, f"{done.stderr}\n{text}"


def _again(text: str | bytes) -> str:
    """Return the XML of the guest that a guest's XML makes."""
    config = new_config(from_xml(to_xml(summary(text))))
    return to_xml(summary(config.encode()))


@pytest.mark.parametrize("name", GUESTS)
def test_what_is_read_back_is_the_same_guest(name: str) -> None:
    first, again = to_xml(summary(GUESTS[name])), _again(GUESTS[name])
    assert _without_defaults(again) == _without_defaults(first)


def _without_defaults(text: str) -> str:
    """Return XML without what a configuration of ours is completed by, devices by kind."""
    root = ElementTree.fromstring(text)
    devices = root.find("devices")
    assert devices is not None
    for interface in devices.findall("interface"):
        for script in interface.findall("script"):
            interface.remove(script)
    kept = [device for device in devices if device.tag != "console"]
    devices[:], devices.text = sorted(kept, key=lambda device: device.tag), None
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def test_disks_by_number_have_the_names_of_their_numbers() -> None:
    root = ElementTree.fromstring(to_xml(summary(GUESTS["disks-by-number"])))
    names = [target.get("dev") for target in root.iterfind("devices/disk/target")]
    assert names == ["hda1", "hdd", "xvdb"]


def test_command_line_is_the_one_that_is_booted_with() -> None:
    root = ElementTree.fromstring(to_xml(summary(GUESTS["pv-of-3.0"])))
    assert root.findtext("os/cmdline") == "ip=10.0.0.7:1.2.3.4::::eth0: root=/dev/sda1 ro 4"


def domain(inside: str = "", os: str = "<type>linux</type><kernel>/k</kernel>") -> str:
    return (
        f"<domain type='xen'><name>a</name><memory unit='MiB'>16</memory><os>{os}</os>"
        f"<devices>{inside}</devices></domain>"
    )


DISK = "<disk type='file'{}>{}<source file='/a'/><target dev='xvda'/></disk>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<domain", "cannot be read"),
        ("<!DOCTYPE domain><domain/>", "document type"),
        ("<network/>", "<domain> was expected"),
        (domain().replace("'xen'", "'kvm'"), "unexpected domain type kvm"),
        (domain().replace(">16<", ">-1<"), "is no size"),
        (domain().replace(">16<", ">²<"), "is no size"),
        (domain().replace("<name>a</name>", ""), "<name> is missing"),
        (domain("<hostdev/>"), "not supported: <hostdev> in <devices>"),
        (
            domain("<interface type='network'><source network='default'/></interface>"),
            "not supported: <interface type='network'>",
        ),
        (
            domain("<interface><bandwidth/><vlan/></interface>"),
            "<bandwidth> in <interface>, <vlan>",
        ),
        (domain("<graphics type='spice'/>"), "<graphics type='spice'>"),
        (domain("<graphics type='vnc'/><graphics type='vnc'/>"), "a second <graphics>"),
        (domain(DISK.format("", "<iotune/>")), "<iotune> in <disk>"),
        (domain().replace("<os>", "<cputune><shares>512</shares></cputune><os>"), "<cputune>"),
        (domain().replace("<os>", "<vcpu cpuset='0-1'>2</vcpu><os>"), "<vcpu cpuset="),
        (domain().replace("<os>", "<clock offset='variable'/><os>"), "<clock offset='variable'>"),
        (domain(os="<type>hvm</type><loader>/usr/share/OVMF.fd</loader>"), "<loader> /usr/share"),
        (domain(os="<type>xenpvh</type>"), "os type xenpvh"),
        (domain(DISK.format("", "<driver type='vmdk'/>")), "format vmdk"),
        (domain(DISK.format(" device='floppy'", "")), "kind floppy"),
        (domain("<disk type='file'><target dev='xvda'/></disk>"), "no source"),
        (domain("<disk type='file'><source file='/a'/></disk>"), "no <target"),
    ],
)
def test_what_cannot_be_expressed_is_refused(text: str, reason: str) -> None:
    with pytest.raises(RpcError, match=reason):
        from_xml(text)


def test_an_image_that_is_no_raw_one_keeps_its_driver() -> None:
    tree = from_xml(domain(DISK.format("", "<driver name='qemu' type='qcow2'/>")))
    device = next(item for item in tree if isinstance(item, list) and item[0] == "device")
    assert sxp.child_value(device[1], "uname") == "tap:qcow2:/a"


def test_how_many_vcpus_a_guest_starts_with_goes_both_ways() -> None:
    config = DomainConfig.parse(f"(domain {COMMON} (vcpu_avail 3) (image (linux)))".encode())
    text = to_xml(inactive(config))
    assert '<vcpu placement="static" current="2">4</vcpu>' in text
    assert new_config(from_xml(text)).online_vcpus == 2
