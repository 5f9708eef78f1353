"""`xm create` and `xm new`: the s-expression that a real xm 4.4 would send."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_xend import FakeXend, fault
from xendpy.cli import xm

# A file, and what xm 4.4.4 sent to xend 4.4.4 for one of that content (element for element).
PV = """
kernel = '{root}/fake-kernel'
memory = 64
name = 'legacy-pv'
vcpus = 2
disk = ['phy:vg0/legacy-pv,xvda,w']
vif = ['bridge=xenbr0, mac=00:16:3e:11:22:33']
root = '/dev/xvda1 ro'
extra = 'console=hvc0 note=held-out'
on_poweroff = 'destroy'
on_reboot = 'restart'
on_crash = 'restart'
"""
PV_SXP = [
    "vm",
    ["name", "legacy-pv"],
    ["memory", 64],
    ["on_poweroff", "destroy"],
    ["on_reboot", "restart"],
    ["on_crash", "restart"],
    ["on_xend_start", "ignore"],
    ["on_xend_stop", "ignore"],
    ["vcpus", 2],
    ["oos", 1],
    [
        "image",
        [
            "linux",
            ["kernel", "{root}/fake-kernel"],
            ["root", "/dev/xvda1 ro"],
            ["videoram", 4],
            ["args", "console=hvc0 note=held-out"],
            ["tsc_mode", 0],
            ["nomigrate", 0],
        ],
    ],
    ["s3_integrity", 1],
    ["device", ["vbd", ["uname", "phy:vg0/legacy-pv"], ["dev", "xvda"], ["mode", "w"]]],
    ["device", ["vif", ["bridge", "xenbr0"], ["mac", "00:16:3e:11:22:33"]]],
]
MADE = ["domain", ["domid", 1], ["name", "legacy-pv"]]
REPLIES: Mapping[str, Any] = {
    "xend.domain.create": MADE,
    "xend.domain.waitForDevices": None,
    "xend.domain.unpause": None,
    "xend.domain.destroy": None,
    "xend.domain.new": None,
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DISPLAY", "XAUTHORITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake-kernel").touch()
    (tmp_path / "etc/xen").mkdir(parents=True)
    (tmp_path / "etc/xen/pv.cfg").write_text(PV.format(root=tmp_path))
    return tmp_path


def run(
    root: Path, *argv: str, replies: Mapping[str, Any] = REPLIES
) -> tuple[int, list[tuple[str, tuple[Any, ...]]]]:
    with FakeXend(root / "var/run/xend/xmlrpc.sock", replies) as fake:
        code = xm.main(["--root", str(root), *argv])
    return code, fake.calls


def under(root: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [under(root, item) for item in value]
    return value.replace("{root}", str(root)) if isinstance(value, str) else value


def test_create_sends_what_xm_sent(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, sent = run(root, "create", "pv.cfg")
    assert sent == [
        ("xend.domain.create", (under(root, PV_SXP),)),
        ("xend.domain.waitForDevices", ("legacy-pv",)),
        ("xend.domain.unpause", ("legacy-pv",)),
    ]
    assert code == 0
    assert capsys.readouterr().out == (
        f'Using config file "{root}/etc/xen/pv.cfg".\nStarted domain legacy-pv (id=1)\n'
    )


def test_paused_is_not_unpaused(root: Path) -> None:
    sent = run(root, "create", "-p", "-f", "etc/xen/pv.cfg")[1]
    assert [name for name, _ in sent] == ["xend.domain.create", "xend.domain.waitForDevices"]


def test_quiet(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "create", "-q", "pv.cfg")[0] == 0
    assert capsys.readouterr().out == ""


def test_new_only_registers(root: Path) -> None:
    assert run(root, "new", "pv.cfg")[1] == [("xend.domain.new", (under(root, PV_SXP),))]


def test_command_line_wins_over_the_file(root: Path) -> None:
    sent = run(root, "create", "pv.cfg", "name=other", "memory=32", "disk=file:/a,sda,r")[1]
    config = sent[0][1][0]
    assert config[1:3] == [["name", "other"], ["memory", 32]]
    assert next(item for item in config if item[0] == "device") == [
        "device",
        ["vbd", ["uname", "file:/a"], ["dev", "sda"], ["mode", "r"]],
    ]


def test_name_is_the_files_without_one(root: Path) -> None:
    (root / "web9").write_text("kernel = 'xendpy:ticker'\nmemory = 16\n")
    config = run(root, "create", "web9")[1][0][1][0]
    assert config[1] == ["name", "web9"]
    assert ["kernel", "xendpy:ticker"] in next(i for i in config if i[0] == "image")[1]


def test_latin_1_reaches_the_daemon(root: Path) -> None:
    (root / "web9").write_bytes(b"name = 'web9'\nextra = 'note=T\xfcr'\n")
    config = run(root, "create", "web9")[1][0][1][0]
    assert ["args", "note=T\u00fcr"] in next(i for i in config if i[0] == "image")[1]


def test_endless_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "create", "-q", "/dev/zero")[0] == 1
    assert "longer than 1048576 bytes" in capsys.readouterr().err


def test_script_variable(root: Path) -> None:
    (root / "many").write_text("name = 'vm%d' % vmid\n")
    assert run(root, "create", "many", "vmid=3")[1][0][1][0][1] == ["name", "vm3"]


def test_dry_run_prints_and_calls_nobody(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "a").write_text("name = 'a'\nextra = 'x y'\nvif = ['']\n")
    assert xm.main(["--root", str(root), "create", "-n", "a"]) == 0
    assert capsys.readouterr().out == (
        'Using config file "a".\n'
        "(vm\n"
        "    (name a)\n"
        "    (memory 128)\n"
        "    (on_xend_start ignore)\n"
        "    (on_xend_stop ignore)\n"
        "    (vcpus 1)\n"
        "    (oos 1)\n"
        "    (image (linux (videoram 4) (args 'x y') (tsc_mode 0) (nomigrate 0)))\n"
        "    (s3_integrity 1)\n"
        "    (device (vif))\n"
        ")\n"
    )


def test_sxp_file_is_sent_as_it_is(root: Path) -> None:
    (root / "a.sxp").write_text("(vm (name a) (memory 64) (image (linux (args 'x y'))))\n")
    assert run(root, "create", "-F", "a.sxp")[1][0] == (
        "xend.domain.create",
        (["vm", ["name", "a"], ["memory", "64"], ["image", ["linux", ["args", "x y"]]]],),
    )


def test_devices_that_fail_destroy_the_domain(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = {**REPLIES, "xend.domain.waitForDevices": fault(2, "Device 51712 (vbd) failed")}
    code, sent = run(root, "create", "pv.cfg", replies=replies)
    assert (code, sent[-1]) == (1, ("xend.domain.destroy", ("legacy-pv",)))
    assert capsys.readouterr().err == "Error: Device 51712 (vbd) failed\n"


ELEMENTS: list[tuple[str, str, list[Any]]] = [
    ("maxvcpus", "vcpus = 2\nmaxvcpus = 4", [["vcpu_avail", 3], ["vcpus", 4]]),
    ("maxmem", "maxmem = 256", [["maxmem", 256]]),
    ("cpus", "cpus = '0-3,^1'", [["cpus", "0-3,^1"]]),
    ("cap-zero", "cpu_cap = 0", [["cpu_cap", 0]]),
    ("uuid", "uuid = 'u'", [["uuid", "u"]]),
    ("pool", "pool = 'Pool-1'", [["pool_name", "Pool-1"]]),
    ("netif", "netif = 1", [["backend", ["netif"]]]),
    (
        "pygrub",
        "bootloader = '/usr/bin/pygrub'",
        [["bootloader", "/usr/bin/pygrub"], ["bootloader_args", "-q"]],
    ),
    (
        "tap-with-backend",
        "disk = ['tap:aio:/a,sda1,w,2']",
        [
            [
                "device",
                ["tap", ["uname", "tap:aio:/a"], ["dev", "sda1"], ["mode", "w"], ["backend", "2"]],
            ]
        ],
    ),
    (
        "vfb",
        "vfb = ['type=vnc,vncunused=1']",
        [
            ["device", ["vkbd"]],
            [
                "device",
                ["vfb", ["vnc", "1"], ["vncunused", "1"], ["xauthority", "/root/.Xauthority"]],
            ],
        ],
    ),
    (
        "pci",
        "pci = ['c0:02.1']",
        [
            [
                "device",
                [
                    "pci",
                    [
                        "dev",
                        ["domain", "0x0000"],
                        ["bus", "0xc0"],
                        ["slot", "0x02"],
                        ["func", "0x1"],
                        ["vdevfn", "0x100"],
                        ["key", "c0:02.1"],
                    ],
                ],
            ]
        ],
    ),
    (
        "ioports",
        "ioports = ['2f8-2ff']",
        [["device", ["ioports", ["from", "0x2f8"], ["to", "0x2ff"]]]],
    ),
    ("irq", "irq = [7]", [["device", ["irq", ["irq", "7"]]]]),
    (
        "vtpm",
        "vtpm = ['instance=1,backend=0']",
        [
            ["device", ["vtpm", ["pref_instance", "1"], ["backend", "0"]]],
        ],
    ),
]


@pytest.mark.parametrize(
    ("text", "elements"), [row[1:] for row in ELEMENTS], ids=[row[0] for row in ELEMENTS]
)
def test_element(root: Path, text: str, elements: list[Any]) -> None:
    (root / "a").write_text(text)
    config = run(root, "create", "a")[1][0][1][0]
    assert [item for item in config if item in elements] == elements


def test_hvm_image(root: Path) -> None:
    (root / "a").write_text(
        "builder = 'hvm'\nkernel = 'hvmloader'\nvnc = 1\nboot = 'dc'\nviridian = 1\n"
    )
    config = run(root, "create", "a")[1][0][1][0]
    image = next(item for item in config if item[0] == "image")[1]
    keys = [item[0] for item in image[1:]]
    assert image[0] == "hvm"
    assert image[1] == ["kernel", "hvmloader"]
    assert [
        next(item for item in image if item[0] == key)
        for key in ("vnc", "boot", "acpi", "pae", "viridian")
    ] == [["vnc", 1], ["boot", "dc"], ["acpi", 1], ["pae", 1], ["viridian", 1]]
    assert keys[-2:] == ["tsc_mode", "nomigrate"]
    assert "device_model" not in keys  # not given: the daemon's own


ERRORS = [
    ("kernel", "kernel = '/nowhere/vmlinuz'", 'Cannot find kernel "/nowhere/vmlinuz"'),
    ("ramdisk", "ramdisk = 'no-such'", 'Cannot find ramdisk "no-such"'),
    ("disk", "disk = ['phy:a']", "Invalid disk specifier: phy:a"),
    ("disk-text", "disk = 'phy:a,b,w'", "disk must be a list, not 'phy:a,b,w'"),
    ("vif", "vif = ['mak=1']", "Invalid vif option: mak"),
    ("vif-pair", "vif = ['bridge']", "bridge should be a pair, separated by an equals sign."),
    ("vfb", "vfb = ['vnx=1']", "configuration option vnx unknown to vfbs"),
    ("nfs", "nfs_root = '/x'", "Must set nfs root and nfs server"),
    ("code", "\nimport os", "a:2: an import is not an assignment"),
    ("vscsi", "vscsi = ['a,b']", "vscsi is not supported"),
]


@pytest.mark.parametrize(("text", "error"), [r[1:] for r in ERRORS], ids=[r[0] for r in ERRORS])
def test_error(root: Path, text: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "a").write_text(text)
    code, sent = run(root, "create", "-q", "a")
    assert (code, sent) == (1, [])
    assert capsys.readouterr().err == f"Error: {error}\n"


@pytest.mark.parametrize("word", ["memory=lots", "netif=1"])
def test_command_line_value_of_the_wrong_kind(
    root: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, "create", "pv.cfg", word)[0] == 1
    assert capsys.readouterr().err == f"Error: Invalid value: {word.partition('=')[2]}\n"


@pytest.mark.parametrize("name", ["nobody", "etc/xen"])
def test_missing_file(root: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "create", name)[0] == 1
    assert capsys.readouterr().err == f'Error: Cannot open config file "{name}"\n'


def test_file_beside_a_directory_of_its_name(root: Path) -> None:
    (root / "pv.cfg").mkdir()
    assert run(root, "create", "pv.cfg")[0] == 0


def test_all_on_the_command_line(root: Path) -> None:
    words = ("kernel=xendpy:ticker", "memory=16", "name=web9")
    config = run(root, "create", "/dev/null", *words)[1][0][1][0]
    assert config[1:3] == [["name", "web9"], ["memory", 16]]


def test_file_from_a_pipe(root: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader):
        with os.fdopen(writer, "w") as file:
            file.write("name = 'web9'\n")
        assert run(root, "create", f"/dev/fd/{reader}")[1][0][1][0][1] == ["name", "web9"]


def test_help_config_lists_the_variables(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "create", "--help_config")[0] == 0
    out = capsys.readouterr().out
    assert "\nmemory=MIB\n    Memory. Default 128.\n" in out
