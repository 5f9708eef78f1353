"""A guest that is defined again: what the XML says changes, all else stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.control.fakes import FakeHypervisor
from tests.control.libvirt.client import Client
from tests.control.libvirt.test_domain_xml import COMMON, GUESTS
from xendpy import sxp
from xendpy.control.guests import Guests
from xendpy.control.libvirt.domain_xml import to_xml
from xendpy.control.libvirt.redefine import redefined
from xendpy.control.libvirt.wire import Status
from xendpy.control.libvirt.xdr import Reader, Writer
from xendpy.control.libvirt.xml_config import from_xml
from xendpy.control.managed import inactive
from xendpy.control.new_config import new_config
from xendpy.guest.domain import DomainConfig, kernel_arguments
from xendpy.guest.origin import is_received

GET_XML, DEFINE, INACTIVE = 14, 11, 2
PV = new_config(
    sxp.parse_one(
        f"""(vm {COMMON} (on_xend_start start) (cpu_weight 512) (cpus ((0 1) (2))) (own (x 1))
        (vcpu_avail 15) (image (linux (kernel /boot/k) (args ro) (tsc_mode 2) (pci ())))
        (device (vkbd)) (device (pci (dev (slot 0x1)))) (device (vif (mac 00:16:3e:11:22:33)
          (bridge xenbr1) (rate 10Mb/s)))
        (device (tap (uname tap:aio:/srv/a.img) (dev 0x0301) (mode w) (uuid u1)))
        (device (vbd (uname phy:vg0/b) (dev xvdb:disk) (mode w) (bootable 0) (uuid u2)))
        (device (vfb (type vnc) (vncunused 1) (vncpasswd secret) (xauthority /x))))""".encode()
    )
)
HVM = DomainConfig.parse(
    f"""(domain {COMMON} (image (hvm (boot c) (acpi 1) (apic 1) (pae 1) (hap 1) (vnc 1)
    (vncunused 1) (vnclisten 0.0.0.0) (vncpasswd secret))))""".encode()
)

PVH = DomainConfig.parse(
    f"""(domain {COMMON} (image (pvh (kernel /boot/k) (ramdisk /boot/r) (args quiet) (boot '')))
    (device (vif (mac 00:16:3e:11:22:33) (bridge xenbr1))))""".encode()
)


def completed(config: DomainConfig) -> DomainConfig:
    """Return a configuration to which nothing is added any more: a console, then its backend."""
    return new_config(new_config(config.tree).tree)


def shown(config: DomainConfig) -> str:
    return to_xml(inactive(config))


def again(config: DomainConfig, changes: Mapping[str, str]) -> DomainConfig:
    """Return what a guest is after its XML was edited."""
    text = shown(config)
    for before, after in changes.items():
        assert before in text, text
        text = text.replace(before, after)
    return new_config(redefined(from_xml(text), config))


def device(config: DomainConfig, kind: str) -> sxp.SxpList:
    return next(found for known, found in config.devices() if known == kind)


def settled(config: DomainConfig) -> list[str]:
    """Return a configuration's entries, those of the image and the devices apart, in order."""
    entries = [item for item in config.tree[1:] if isinstance(item, list)]
    rows = [["image", item] for item in config.image()]
    return sorted(
        sxp.show(item) for item in [*entries, *rows] if item[0] != "image" or item in rows
    )


@pytest.mark.parametrize("text", [*GUESTS.values(), PV.encode(), HVM.encode(), PVH.encode()])
def test_xml_that_says_the_same_changes_nothing(text: str | bytes) -> None:
    config = DomainConfig.parse(text if isinstance(text, bytes) else text.encode())
    whole = completed(config)
    assert settled(again(whole, {})) == settled(whole)


def test_only_what_is_said_changes() -> None:
    changed = again(
        PV,
        {
            '<currentMemory unit="KiB">524288<': '<currentMemory unit="KiB">262144<',
            "<on_crash>restart<": "<on_crash>destroy<",
            "<cmdline>ro<": "<cmdline>rw<",
            'bridge="xenbr1"': 'bridge="xenbr2"',
            "/dev/vg0/b": "/dev/vg1/c",
        },
    )
    assert (changed.memory_mib, changed.text("on_crash")) == (256, "destroy")
    assert (changed.text("cpu_weight"), changed.text("on_xend_start")) == ("512", "start")
    assert sxp.child_value(changed.tree, "cpus") == [["0", "1"], ["2"]]
    assert sxp.child_value(changed.image(), "args") == "rw"
    assert sxp.child_value(changed.image(), "tsc_mode") == "2"
    vif, vbd, tap = (device(changed, kind) for kind in ("vif", "vbd", "tap"))
    assert sxp.child_value(vif, "bridge") == "xenbr2"
    assert sxp.child_value(vif, "rate") == "10Mb/s"
    assert sxp.child_value(vbd, "uname") == "phy:/dev/vg1/c"
    assert sxp.child_value(vbd, "uuid") == "u2"
    assert sxp.child_value(tap, "dev") == "0x0301:disk"
    assert sxp.child_value(device(changed, "vfb"), "vncpasswd") == "secret"


def test_pvh_guest_stays_one_until_another_kind_is_asked_for() -> None:
    changed = again(PVH, {"<on_crash>destroy<": "<on_crash>restart<"})
    assert changed.image()[:4] == PVH.image()[:4]
    text = shown(PVH).replace("</os>", "<kernel>/boot/pv</kernel></os>")
    changed = new_config(redefined(from_xml(text.replace(">hvm<", ">linux<")), PVH))
    assert changed.image()[:2] == ["linux", ["kernel", "/boot/pv"]]


@pytest.mark.parametrize(
    ("cmdline", "args"), [("<cmdline>root=/dev/sdb1<", "root=/dev/sdb1"), ("<cmdline><", None)]
)
def test_edited_command_line_is_the_whole_of_it(cmdline: str, args: str | None) -> None:
    old = DomainConfig.parse(str(GUESTS["pv-of-3.0"]).encode())
    shown_line = "<cmdline>ip=10.0.0.7:1.2.3.4::::eth0: root=/dev/sda1 ro 4<"
    image = again(old, {shown_line: cmdline}).image()
    assert kernel_arguments(image) == (args or "")
    assert sxp.child_value(image, "args") == args


def test_image_of_another_format_has_the_driver_it_needs() -> None:
    changed = again(PV, {"/srv/a.img": "/srv/new.img"})
    disks = [found for _, found in changed.devices() if sxp.child_value(found, "uuid") == "u1"]
    assert [(disk[0], sxp.child_value(disk, "uname")) for disk in disks] == [
        ("vbd", "file:/srv/new.img")
    ]


def test_device_that_is_not_said_is_gone_and_one_without_words_stays() -> None:
    text = shown(PV)
    start, end = text.index("<interface"), text.index("</interface>") + len("</interface>")
    changed = new_config(redefined(from_xml(text[:start] + text[end:]), PV))
    kinds = sorted(kind for kind, _ in changed.devices())
    assert kinds == ["console", "pci", "tap", "vbd", "vfb", "vkbd"]


def test_all_of_more_vcpus_are_there() -> None:
    assert again(PV, {">4</vcpu>": ">8</vcpu>"}).online_vcpus == 8


def test_screen_of_an_image() -> None:
    assert sxp.child_value(again(HVM, {}).image(), "vncpasswd") == "secret"
    assert not [kind for kind, _ in again(HVM, {}).devices() if kind == "vfb"]
    changed = again(HVM, {'listen="0.0.0.0"': 'listen="127.0.0.1"'})
    assert sxp.child_value(changed.image(), "vnc") is None
    assert sxp.child_value(changed.image(), "hap") == "1"
    assert sxp.child_value(device(changed, "vfb"), "vnclisten") == "127.0.0.1"


@pytest.mark.parametrize("received", [True, False])
async def test_edited_guest_stays_as_received_as_it_was(
    sockets: Path, guests: Guests, hypervisor: FakeHypervisor, *, received: bool
) -> None:
    hypervisor.add(PV)
    hypervisor.guests[PV.uuid] = replace(hypervisor.guests[PV.uuid], received=received)
    client = await (await Client.connect(sockets)).opened()
    for memory in (512, 768):  # of the live guest, and of the kept one
        text = shown(PV.with_values(memory=memory, maxmem=1024))
        assert (await client.call(DEFINE, Writer().string(text).data())).status == Status.OK
        kept = guests.managed.get(PV.uuid)
        assert kept is not None
        assert (kept.memory_mib, is_received(kept)) == (memory, received)
    client.close()


async def test_edited_guest_keeps_autostart_and_weight(
    sockets: Path, guests: Guests, hypervisor: FakeHypervisor
) -> None:
    whole = completed(PV)
    guests.managed.put(whole)
    hypervisor.add(PV.with_values(memory=128))  # the running guest's is not what is edited
    client = await (await Client.connect(sockets)).opened()
    asked = Writer().domain(PV.name, PV.uuid, 1).u32(INACTIVE).data()
    text = Reader((await client.call(GET_XML, asked)).body).string()
    assert (await client.call(DEFINE, Writer().string(text).data())).status == Status.OK
    client.close()
    kept = guests.managed.get(PV.uuid)
    assert kept is not None
    assert settled(kept) == settled(whole)
