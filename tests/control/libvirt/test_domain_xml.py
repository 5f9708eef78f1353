"""Domain XML: valid to libvirt's own schema, and the same guest when it is read back."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping
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
        (domain().replace("<os>", "<clock offset='timezone'/><os>"), "<clock offset='timezone'>"),
        (
            domain().replace("<os>", "<clock offset='variable' adjustment='3600'/><os>"),
            "<clock adjustment='3600'>",
        ),
        (
            domain().replace("<os>", "<clock><timer name='tsc' mode='native'/></clock><os>"),
            "<timer name='tsc'>",
        ),
        (domain().replace("<os>", "<seclabel type='static'/><os>"), "<seclabel type='static'>"),
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


# What libvirt's drivers for Xen wrote of a guest beyond what is written here.
OLD_PV = """<domain type='xen' id='6'>
  <name>pv</name><uuid>1f2c7b6e-55a0-4e2f-9d1c-0a8b7c6d5e4f</uuid>
  <title>A guest</title><description>Of ours</description>
  <metadata><a:b xmlns:a='urn:a'/></metadata>
  <memory unit='KiB'>524288</memory><vcpu placement='static'>1</vcpu>
  <resource><partition>/machine</partition></resource>
  <os><type arch='x86_64' machine='xenpv'>linux</type><kernel>/boot/k</kernel></os>
  <clock offset='utc' adjustment='reset'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>restart</on_crash>
  <devices>
    <emulator>/usr/lib64/xen/bin/qemu-dm</emulator>
    <disk type='file' device='disk'>
      <driver name='tap2' type='aio'/><source file='/srv/a.img'/><backingStore/>
      <target dev='xvda' bus='xen'/><address type='drive' controller='0' bus='0' unit='0'/>
    </disk>
    <controller type='xenbus' index='0'/>
    <console type='pty' tty='/dev/pts/4'>
      <source path='/dev/pts/4'/><target type='xen' port='0'/><alias name='console0'/>
    </console>
    <input type='mouse' bus='xen'/><input type='keyboard' bus='xen'/>
    <graphics type='vnc' port='5901' autoport='no' listen='0.0.0.0'>
      <listen type='address' address='0.0.0.0'/>
    </graphics>
    <video><model type='xen' vram='4096' heads='1' primary='yes'/></video>
    <memballoon model='xen'/>
  </devices>
  <seclabel type='none'/>
  <seclabel type='dynamic' model='dac' relabel='yes'><label>+0:+0</label></seclabel>
</domain>"""
OLD_HVM = """<domain type='xen'>
  <name>hvm</name><memory>524288</memory>
  <os>
    <type arch='i686' machine='xenfv'>hvm</type>
    <loader type='rom'>/usr/lib/xen/boot/hvmloader</loader><boot dev='hd'/>
  </os>
  <features><acpi/><apic/><pae/><hap/></features>
  <clock offset='variable' adjustment='0' basis='utc'><timer name='hpet' present='no'/></clock>
  <devices><input type='mouse' bus='ps2'/></devices>
</domain>"""


def test_what_libvirt_wrote_of_a_pv_guest_is_taken() -> None:
    config = new_config(from_xml(OLD_PV))
    assert config.image()[:2] == ["linux", ["kernel", "/boot/k"]]
    assert sxp.child_value(config.image(), "localtime") is None
    disk = next(device for kind, device in config.devices() if kind == "vbd")
    assert sxp.child_value(disk, "uname") == "tap:aio:/srv/a.img"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, {"hap": "1", "hpet": "0", "acpi": "1", "viridian": None, "localtime": None}),
        ({"<hap/>": "<hap state='off'/><viridian/>"}, {"hap": "0", "viridian": "1"}),
        (
            {"basis='utc'": "basis='localtime'", " present='no'": ""},
            {"localtime": "1", "hpet": "1"},
        ),
        ({"variable' adjustment='0' basis='utc'": "localtime'"}, {"localtime": "1"}),
    ],
)
def test_what_libvirt_wrote_of_an_hvm_guest_is_taken(
    changes: Mapping[str, str], said: Mapping[str, str | None]
) -> None:
    text = OLD_HVM
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    image = new_config(from_xml(text)).image()
    assert {key: sxp.child_value(image, key) for key in said} == said


def test_an_image_that_is_no_raw_one_keeps_its_driver() -> None:
    tree = from_xml(domain(DISK.format("", "<driver name='qemu' type='qcow2'/>")))
    device = next(item for item in tree if isinstance(item, list) and item[0] == "device")
    assert sxp.child_value(device[1], "uname") == "tap:qcow2:/a"


def test_how_many_vcpus_a_guest_starts_with_goes_both_ways() -> None:
    config = DomainConfig.parse(f"(domain {COMMON} (vcpu_avail 3) (image (linux)))".encode())
    text = to_xml(inactive(config))
    assert '<vcpu placement="static" current="2">4</vcpu>' in text
    assert new_config(from_xml(text)).online_vcpus == 2
