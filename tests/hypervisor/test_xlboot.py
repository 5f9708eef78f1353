import json
import logging
from dataclasses import replace

import pytest

from tests.guests import guest
from tests.peers.xl_driver import driver
from xendpy.control.new_config import new_config
from xendpy.errors import DomainError
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.xlboot import XlBoot, read_boot
from xendpy.hypervisor.xlcfg import to_cfg
from xendpy.hypervisor.xlconfig import to_json
from xendpy.hypervisor.xlguest import read_guest
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.hypervisor.xlsxp import parse_json

RULES = GuestRules(exists=lambda path: True, guest_paths=("/boot",))
OWN = replace(RULES, confined=False)
ELSEWHERE = replace(OWN, exists=lambda path: False)
# As RHEL 5 sends a guest: what pygrub found stands where the operator's wishes were.
FOUND = "(kernel /var/lib/xen/boot_kernel.kUSYEF) (ramdisk /var/lib/xen/boot_ramdisk.x) (args ro)"
WISHED = "(kernel /boot/vmlinuz-2) (ramdisk /boot/initrd-2) (args single)"


def loaded(path="/usr/bin/pygrub", args="-q", image="(kernel '')"):
    tail = f"(bootloader_args '{args}')" if args else ""
    text = f"(bootloader {path}) {tail}"
    raw = guest().encode().decode().replace("(bootloader '')", text)
    start, end = raw.index("(kernel"), raw.index(" (notes")
    return DomainConfig.parse((raw[:start] + image + raw[end:]).encode())


BOOTS = [
    ("created", loaded(), OWN, XlBoot(bootloader="/usr/bin/pygrub", bootloader_args=("-q",))),
    ("not there", loaded(), ELSEWHERE, XlBoot(bootloader="pygrub", bootloader_args=("-q",))),
    ("another", loaded("/opt/boot", '--entry="a b" -i'), ELSEWHERE,
     XlBoot(bootloader="/opt/boot", bootloader_args=("--entry=a b", "-i"))),
    ("received", loaded(), RULES, XlBoot(bootloader="pygrub", bootloader_args=("-q",))),
    ("any path", loaded("/tmp/evil/pygrub", ""), RULES, XlBoot(bootloader="pygrub")),
    ("found", loaded(args="", image=FOUND), RULES, XlBoot(bootloader="pygrub")),
    ("wished", loaded(args="", image=WISHED), RULES,
     XlBoot(bootloader="pygrub", kernel="/boot/vmlinuz-2", ramdisk="/boot/initrd-2",
            cmdline="single")),
    ("unsafe", loaded(args="--output=/etc/passwd -q --entry=1 /etc/shadow -i"), RULES,
     XlBoot(bootloader="pygrub", bootloader_args=("-q", "--entry=1"),
            note="the boot loader's arguments --output=/etc/passwd /etc/shadow -i are left out"
            " here")),
    ("evil", loaded("/tmp/evil", image=WISHED), RULES,
     XlBoot(note="boot loader /tmp/evil is not run here: the guest cannot reboot by itself")),
    ("3.0.3", loaded("''", image="(kernel /boot/k) (ip dhcp) (root '/dev/xvda1 ro') (args quiet)"),
     RULES, XlBoot(kernel="/boot/k", cmdline="ip=dhcp root=/dev/xvda1 ro quiet")),
    ("3.0.3, loaded", loaded(args="", image="(kernel /boot/k) (root /dev/xvda1)"), RULES,
     XlBoot(bootloader="pygrub", kernel="/boot/k", cmdline="root=/dev/xvda1")),
    ("3.0.4", loaded("''", image=FOUND), RULES,
     XlBoot(note="/var/lib/xen/boot_kernel.kUSYEF was a boot loader's for one boot: the guest"
            " cannot reboot by itself")),
    ("none", loaded("''", image=WISHED), RULES,
     XlBoot(kernel="/boot/vmlinuz-2", ramdisk="/boot/initrd-2", cmdline="single")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "rules", "boot"), [row[1:] for row in BOOTS], ids=[row[0] for row in BOOTS]
)
def test_boots(config, rules, boot):
    assert read_boot(config, rules) == boot


def test_arguments_with_an_open_quote_are_named():
    with pytest.raises(DomainError, match=r"bootloader_args --entry=\"a: No closing quotation"):
        read_boot(loaded(args='--entry="a'), RULES)


def test_a_boot_loader_is_told_in_each_format():
    built = read_guest(loaded(args='-q --entry="a b"', image=WISHED), RULES)
    info = json.loads(to_json(built).rstrip(b"\0"))["b_info"]
    assert info["bootloader"] == "pygrub"
    assert info["bootloader_args"] == ["-q", "--entry=a b"]
    assert (info["kernel"], info["cmdline"]) == ("/boot/vmlinuz-2", "single")
    lines = to_cfg(built).splitlines()
    assert 'bootloader = "pygrub"' in lines
    assert 'bootloader_args = ["-q", "--entry=a b"]' in lines
    back = parse_json(to_json(built))
    assert back.text("bootloader") == "/usr/bin/pygrub"  # a xend knows no other word for it
    assert read_guest(back, RULES).boot == built.boot


def test_what_xl_started_keeps_its_boot_loader():
    config = json.loads(to_json(read_guest(loaded("/opt/boot", "-q"), OWN)).rstrip(b"\0"))
    assert read_boot(parse_json(json.dumps(config).encode()), OWN).bootloader == "/opt/boot"
    built = config["b_info"]
    built["type.pv"] = {key: built.pop(key) for key in ("bootloader", "bootloader_args")}
    older = parse_json(json.dumps(config).encode())  # Xen 4.10 and before
    assert (older.text("bootloader"), older.text("bootloader_args")) == ("/opt/boot", "-q")


def test_a_created_guest_has_something_to_boot():
    asked = ["vm", ["name", "rhel5"], ["memory", 64], ["bootloader", "/usr/bin/pygrub"],
             ["bootloader_args", "-q"], ["image", ["linux"]]]  # fmt: skip
    cfg = to_cfg(read_guest(new_config(asked), ELSEWHERE))
    assert 'bootloader = "pygrub"\nbootloader_args = ["-q"]\n' in cfg


def test_a_guest_that_cannot_reboot_is_told_of(tmp_path, xl, caplog):
    caplog.set_level(logging.WARNING)
    hypervisor = driver(tmp_path, xl)
    text = "boot loader /opt/boot is not run here: the guest cannot reboot by itself"
    with hypervisor.restore(loaded("/opt/boot")):
        assert f"web01: {text}" in caplog.messages
    assert hypervisor.place(loaded("/opt/boot")).notes == (text,)
    assert hypervisor.place(loaded()).notes == ()
    hypervisor.close()
