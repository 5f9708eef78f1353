from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from xendpy import sxp
from xendpy.config_file import parse
from xendpy.control.new_config import Defaults, new_config
from xendpy.errors import DomainError, RpcError
from xendpy.guest.domain import DomainConfig, GuestType

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def vm(*entries: Any) -> list[Any]:
    return ["vm", ["name", "web1"], ["memory", 64], *entries]


def device(config: DomainConfig, kind: str) -> dict[str, Any]:
    found = next(item for name, item in config.devices() if name == kind)
    return {item[0]: item[1] for item in found[1:] if isinstance(item, list)}  # type: ignore[misc]


def test_what_the_client_leaves_out_is_xends_default() -> None:
    config = new_config(vm())
    assert UUID.fullmatch(config.uuid)
    assert (config.vcpus, config.maxmem_mib, config.guest_type) == (1, 64, GuestType.PV)
    assert config.text("on_reboot") == "restart"
    assert config.text("on_poweroff") == "destroy"
    assert device(config, "console")["protocol"] == "vt100"
    assert config.raw == b""
    assert DomainConfig.parse(config.encode()) == config


def test_what_the_client_says_counts() -> None:
    uuid = "00000000-0000-0000-0000-00000000000a"
    config = new_config(vm(["uuid", uuid], ["vcpus", 4], ["on_crash", "preserve"], ["odd", 1.5]))
    assert (config.uuid, config.vcpus, config.text("on_crash")) == (uuid, 4, "preserve")
    assert config.text("odd") == "1.5"


def test_only_what_xm_needs_itself_is_dropped() -> None:
    config = new_config(vm(["s3_integrity", 1], ["oos", 1], ["domid", 7], ["status", 2]))
    assert not {"s3_integrity", "oos", "domid", "status"} & {
        str(item[0]) for item in config.tree[1:] if isinstance(item, list)
    }


@pytest.mark.parametrize(
    ("entries", "args"),
    [
        ([["root", "/dev/xvda1 ro"], ["args", "quiet"]], "root=/dev/xvda1 ro quiet"),
        ([["args", "quiet"]], "quiet"),
        ([["ip", "dhcp"], ["root", "/dev/nfs"]], "ip=dhcp root=/dev/nfs"),
        ([], None),
        ([["args", ""]], None),
    ],
)
def test_kernel_arguments_are_put_together(entries: list[Any], args: str | None) -> None:
    config = new_config(vm(["image", ["linux", ["kernel", "/k"], *entries]]))
    image = {item[0]: item[1] for item in config.image()[1:] if isinstance(item, list)}
    assert image.get("args") == args
    assert "root" not in image
    assert image["kernel"] == "/k"


def test_a_boot_loader_is_told_the_kernels_arguments() -> None:
    image = ["image", ["linux", ["root", "/dev/xvda1"], ["args", "single"]]]
    config = new_config(vm(["bootloader", "pygrub"], image))
    assert config.image()[:3] == ["linux", ["kernel", ""], ["args", "root=/dev/xvda1 single"]]


def test_hvm_image_is_left_as_it_is() -> None:
    config = new_config(vm(["image", ["hvm", ["boot", "c"], ["acpi", 1], ["root", "x"]]]))
    assert config.guest_type is GuestType.HVM
    assert ["root", "x"] in config.image()
    assert ["acpi", "1"] in config.image()


def test_devices_are_completed() -> None:
    config = new_config(
        vm(
            ["device", ["vif", ["bridge", "xenbr0"]]],
            ["device", ["vbd", ["uname", "phy:a"], ["dev", "xvda"], ["mode", "w"]]],
            ["device", ["tap", ["uname", "tap:aio:b"], ["dev", "hdc:cdrom"], ["mode", "r"]]],
            ["device", ["console", ["protocol", "other"]]],
        )
    )
    vif, vbd, tap = device(config, "vif"), device(config, "vbd"), device(config, "tap")
    assert re.fullmatch(r"00:16:3e:[0-7][0-9a-f]:[0-9a-f]{2}:[0-9a-f]{2}", vif["mac"])
    assert vif["script"] == "/etc/xen/scripts/vif-bridge"
    assert (vbd["dev"], vbd["bootable"], vbd["mode"]) == ("xvda:disk", "1", "w")
    assert (tap["dev"], tap["bootable"]) == ("hdc:cdrom", "0")
    assert [name for name, _ in config.devices()].count("console") == 1
    assert all(UUID.fullmatch(item["uuid"]) for item in (vif, vbd, tap))


def test_what_a_guest_does_not_say_the_daemons_configuration_does() -> None:
    text = "(vif-script 'vif-route netdev=eth0') (vncpasswd secret) (keymap de)"
    defaults = Defaults.of(parse(text, Path("f")).config)
    vnc, sdl = ["vfb", ["vnc", 1]], ["vfb", ["sdl", 1]]
    config = new_config(vm(["device", vnc], ["device", ["vif"]]), defaults)
    assert device(config, "vif")["script"] == "/etc/xen/scripts/vif-route"
    assert device(config, "vfb")["vncpasswd"] == "secret"
    assert device(config, "vfb")["keymap"] == "de"
    assert "vncpasswd" not in device(new_config(vm(["device", sdl]), defaults), "vfb")
    own = ["vfb", ["type", "vnc"], ["vncpasswd", ""], ["keymap", "fr"]]
    vif = ["vif", ["script", "/etc/xen/scripts/vif-nat"]]
    config = new_config(vm(["device", own], ["device", vif]), defaults)
    assert (device(config, "vfb")["vncpasswd"], device(config, "vfb")["keymap"]) == ("", "fr")
    assert device(config, "vif")["script"] == "/etc/xen/scripts/vif-nat"
    image = new_config(vm(["image", ["hvm", ["vnc", 1]]]), defaults).image()
    assert ["vncpasswd", "secret"] in image
    image = new_config(vm(["image", ["hvm", ["vnc", 0]]]), defaults).image()
    assert ["vncpasswd", "secret"] not in image


@pytest.mark.parametrize("script", ["vif-nat", "/etc/xen/scripts/vif-nat", ""])
def test_default_script_is_one_of_xens_directory(script: str) -> None:
    defaults = Defaults.of(parse(f"(vif-script '{script}')", Path("f")).config)
    assert defaults.vif_script == ("vif-nat" if script else "vif-bridge")


def test_odd_devices_are_passed_over() -> None:
    config = new_config(vm(["device"], ["device", "vif"], ["device", []], ["device", [[]]]))
    assert [name for name, _ in config.devices()] == ["console"]


def test_cpuid_comes_as_a_struct() -> None:
    leaves = {"1": {"ecx": "x" * 32}}
    image = ["image", ["hvm", ["cpuid", {}], ["kernel", "hvmloader"]]]
    config = new_config(["vm", ["name", "a"], ["memory", 64], ["cpuid", leaves], image])
    assert sxp.child_value(config.tree, "cpuid") == [["1", [["ecx", "x" * 32]]]]
    assert sxp.child_value(config.image(), "cpuid") == []


BAD: list[tuple[Any, type[Exception], str]] = [
    ([], RpcError, "not a guest configuration"),
    ("vm", RpcError, "not a guest configuration"),
    (None, RpcError, "not a guest configuration"),
    (["host", ["name", "x"]], RpcError, "not a guest configuration"),
    (["vm", ["memory", 64]], DomainError, "Missing VM Name"),
    (["vm", ["name", "a b"], ["memory", 64]], DomainError, "Invalid VM Name"),
    (["vm", ["name", "a"], ["memory", 0]], DomainError, "memory must be"),
    (["vm", ["name", "a"]], DomainError, "memory"),
    (["vm", ["name", {1}], ["memory", 64]], RpcError, "set has no place in an sxp"),
]


@pytest.mark.parametrize(("value", "error", "text"), BAD)
def test_impossible_configuration_is_refused(
    value: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        new_config(value)


@pytest.mark.parametrize(
    ("entries", "cpus"),
    [
        ([["cpus", "0-3,^1"]], [["0", "2", "3"], ["0", "2", "3"]]),
        ([["cpus", ["2", "4-5"]]], [["2"], ["4", "5"]]),
        ([["cpus", ["2"]]], [["2"]]),
        ([["cpus", [["2"], ["3"]]]], [["2"], ["3"]]),
        ([["cpu", 3]], [["3"]]),
        ([["cpu", -1], ["cpus", "1"]], [["1"], ["1"]]),
        ([["cpu", -1]], None),
        ([], None),
    ],
)
def test_each_vcpu_has_its_cpus(entries: list[Any], cpus: list[list[str]] | None) -> None:
    config = new_config(vm(["vcpus", 2], *entries))
    assert sxp.child_value(config.tree, "cpus") == cpus


def test_cpus_that_are_none_are_refused() -> None:
    with pytest.raises(DomainError, match="cpus 0-x: expected like 0-3"):
        new_config(vm(["cpus", "0-x"]))
