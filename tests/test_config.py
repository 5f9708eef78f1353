"""The option table and the file: what wins, what warns, what is refused with its line."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import xendpy
from xendpy.config import PeerRow, XendConfig, options
from xendpy.config_file import load, parse
from xendpy.errors import ConfigError

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "etc/xend-config.sxp"
CHAPTER = """\
(xend-relocation-server yes)
(xend-relocation-port 8002)
(xend-relocation-address '')
(xend-relocation-hosts-allow '')
"""

# Name, a value other than the default, the default: XendOptions.py, Xen 4.4.
XEN_4_4 = [
    ("logfile", "/tmp/xend.log", "/var/log/xen/xend.log"),
    ("loglevel", "INFO", "DEBUG"),
    ("xen-api-server", "((9363 pam))", [["unix"]]),
    ("xend-http-server", "yes", False),
    ("xend-unix-server", "yes", False),
    ("xend-unix-path", "/x", "/var/lib/xend/xend-socket"),
    ("xend-tcp-xmlrpc-server", "yes", False),
    ("xend-tcp-xmlrpc-server-address", "a", "localhost"),
    ("xend-tcp-xmlrpc-server-port", "1", 8006),
    ("xend-tcp-xmlrpc-server-ssl-key-file", "k", ""),
    ("xend-tcp-xmlrpc-server-ssl-cert-file", "c", ""),
    ("xend-unix-xmlrpc-server", "no", True),
    ("xend-relocation-server", "yes", False),
    ("xend-relocation-ssl-server", "yes", False),
    ("xend-relocation-port", "1", 8002),
    ("xend-relocation-ssl-port", "1", 8003),
    ("xend-relocation-ssl", "yes", False),
    ("xend-relocation-server-ssl-key-file", "k", ""),
    ("xend-relocation-server-ssl-cert-file", "c", ""),
    ("xend-relocation-address", "eth0", ""),
    ("xend-relocation-hosts-allow", "^a$", ""),
    ("xend-udev-event-server", "yes", False),
    ("xend-port", "1", 8000),
    ("xend-address", "a", ""),
    ("xend-domains-path", "/x", "/var/lib/xend/domains"),
    ("xend-state-path", "/x", "/var/lib/xend/state"),
    ("xend-storage-path", "/x", "/var/lib/xend/storage"),
    ("xend-security-path", "/x", "/var/lib/xend/security"),
    ("network-script", "network-bridge", ""),
    ("vif-script", "vif-route", "vif-bridge"),
    ("external-migration-tool", "/x", ""),
    ("enable-dump", "yes", False),
    ("dom0-min-mem", "196", 0),
    ("enable-dom0-ballooning", "no", True),
    ("total_available_memory", "1", 0),
    ("dom0-cpus", "1", 0),
    ("console-limit", "1", 1024),
    ("vnc-listen", "0.0.0.0", "127.0.0.1"),
    ("vncpasswd", "x", ""),
    ("vnc-tls", "1", "0"),
    ("vnc-x509-cert-dir", "/x", "/etc/xen/vnc"),
    ("vnc-x509-verify", "1", "0"),
    ("keymap", "de", ""),
    ("resource-label-change-script", "/x", ""),
    ("xsm_module_name", "flask", "dummy"),
    ("qemu-dm-logrotate-count", "1", 10),
    ("device-create-timeout", "1", 100),
    ("device-destroy-timeout", "1", 100),
    ("pci-passthrough-strict-check", "no", True),
    ("pscsi-device-mask", "('0:0:*:*')", ["*"]),
]


def test_a_missing_file_means_defaults_and_no_relocation_server(tmp_path: Path) -> None:
    loaded = load(tmp_path / "none.sxp")
    assert loaded.config == XendConfig()
    assert not loaded.config.relocation_server
    assert "does not exist" in loaded.warnings[0].text


def test_the_shipped_file_is_clean_and_all_defaults() -> None:
    loaded = load(SHIPPED)
    assert (loaded.config, loaded.warnings) == (XendConfig(), ())


def test_the_chapter_s_grep_prints_its_four_lines(tmp_path: Path) -> None:
    file = tmp_path / "xend-config.sxp"
    file.write_text(re.sub(r"(?m)^#\(xend-relocation-", "(xend-relocation-", SHIPPED.read_text()))
    grep = f"grep xend-relocation {file} | grep -v '#'"
    printed = subprocess.run(grep, shell=True, capture_output=True, text=True, check=True).stdout
    assert printed == CHAPTER
    assert load(file).config.relocation_server


def test_every_option_of_the_shipped_file_is_known_and_at_its_default(tmp_path: Path) -> None:
    file = tmp_path / "xend-config.sxp"
    file.write_text(re.sub(r"(?m)^#\(", "(", SHIPPED.read_text()))
    loaded = load(file)
    changed = {name for name, _, default in options() if getattr(loaded.config, name) != default}
    assert changed == {"relocation_server"}
    assert not [line for line in SHIPPED.read_text().splitlines() if re.match(r"[^#\n]", line)]
    assert len(loaded.warnings) == 1  # the empty hosts-allow


def test_the_first_of_duplicates_wins_with_a_warning() -> None:
    loaded = parse("(xend-relocation-port 1)\n(xend-relocation-port 2)\n", Path("f"))
    assert loaded.config.relocation_port == 1
    assert loaded.origins["xend-relocation-port"] == 1
    assert [(item.line, "first one, line 1" in item.text) for item in loaded.warnings] == [
        (2, True)
    ]


def test_an_option_without_value_is_the_first_of_its_duplicates() -> None:
    loaded = parse("(xend-relocation-port)\n(xend-relocation-port 2)\n", Path("f"))
    assert loaded.config.relocation_port == 8002
    assert [item.line for item in loaded.warnings] == [1, 2]


def test_warnings_come_in_the_order_of_the_file() -> None:
    text = "(oops 1)\n(xend-relocation-hosts-allow '^a\\.b')\n(oops 2)\n"
    assert [item.line for item in parse(text, Path("f")).warnings] == [1, 2, 2, 3]


def test_structured_defaults_are_nobody_s_to_change() -> None:
    one, two = XendConfig(), XendConfig()
    assert one.xen_api_server == [["unix"]] and one.pscsi_device_mask == ["*"]
    assert one.xen_api_server is not two.xen_api_server


@pytest.mark.parametrize(("name", "_", "default"), XEN_4_4, ids=[row[0] for row in XEN_4_4])
def test_every_option_of_xen_4_4_has_its_default(name: str, _: str, default: object) -> None:
    rows = {row.name: row.default for _, row, _ in options()}
    assert rows[name] == default


@pytest.mark.parametrize(("name", "value", "_"), XEN_4_4, ids=[row[0] for row in XEN_4_4])
def test_every_option_of_xen_4_4_is_read(name: str, value: str, _: object) -> None:
    loaded = parse(f"\n({name} {value})\n", Path("f"))
    assert loaded.origins[name] == 2
    assert not [item for item in loaded.warnings if "unknown" in item.text]


WARNED = [
    ("\n(no-such-option 1)", 2, "unknown option no-such-option"),
    ("junk", 1, "junk is no (option value)"),
    ("(xend-relocation-port)", 1, "no value"),
    ("(xend-relocation-hosts-allow ^a$ ^b$)", 1, "ignored: '^b$'"),
    ("(xend-relocation-hosts-allow '^a\\.b$')", 1, "no escape"),
    ("(xend-relocation-hosts-allow '^a')", 1, "does not end in $"),
    ("(xend-relocation-hosts-allow '^a\\\\$')", 1, "does not end in $"),
    ("(xend-relocation-hosts-allow '\\ba$')", 1, "write each backslash twice"),
    ("(xend-relocation-server yes)", 0, "every host"),
    ("(xend-relocation-hosts-allow '')(xend-relocation-server 1)", 1, "every host"),
    ("(xend-http-server yes)", 1, "has no effect: it is accepted, not served"),
    ("(network-script network-bridge)", 1, "has no effect: it is accepted, not run"),
    ("(dom0-min-mem 196)", 1, "dom0-min-mem has no effect: it is accepted, not used"),
    ("(enable-dom0-ballooning no)", 1, "has no effect: it is accepted, not done"),
    ("(device-create-timeout 5)", 1, "device-create-timeout has no effect"),
    ("(vnc-listen 0.0.0.0)", 1, "vnc-listen has no effect"),
    ("(xendpy-peer a)(xendpy-peer a (port 1))", 1, "first one counts"),
]


@pytest.mark.parametrize(("text", "line", "said"), WARNED, ids=[row[2] for row in WARNED])
def test_warnings_say_line_and_reason(text: str, line: int, said: str) -> None:
    warnings = parse(text, Path("f")).warnings
    assert any(item.line == line and said in item.text for item in warnings), warnings


def test_every_option_is_used_or_says_that_it_is_not() -> None:
    package = Path(xendpy.__file__).parent
    files = [file for file in package.rglob("*.py") if file.name != "config.py"]
    text = "\n".join(file.read_text() for file in files)
    unused = {
        row.name
        for attribute, row, _ in options()
        if not re.search(rf"config\.{attribute}\b", text)
    }
    assert unused == {row.name for _, row, _ in options() if "Accepted, n" in row.doc}


REFUSED = [
    ("(xend-relocation-server maybe)", 1, "expected bool: maybe"),
    ("(xend-relocation-server '')", 1, "expected bool: ''"),
    ("\n(xend-relocation-port 0x10)", 2, "expected int: 0x10"),
    ("(xend-relocation-port 1.5)", 1, "expected int: 1.5"),
    ("(xend-relocation-port 65536)", 1, "expected a port from 0 to 65535: 65536"),
    ("(xend-relocation-hosts-allow '^a$  ^b$')", 1, "an empty pattern"),
    ("(xend-relocation-hosts-allow ' ^b$')", 1, "an empty pattern"),
    ("(xend-relocation-hosts-allow '^b$ ')", 1, "an empty pattern"),
    ("(xend-relocation-hosts-allow '(')", 1, "no regular expression"),
    ("(xend-relocation-hosts-allow (a b))", 1, "expected a string"),
    ("(xendpy-hypervisor kvm)", 1, "expected one of auto, xl, store: kvm"),
    ("(xendpy-stall-timeout -1)", 1, "expected seconds: -1"),
    ("(xendpy-max-incoming 0)", 1, "from 1 up"),
    ("(xendpy-max-sxp-depth 201)", 1, "up to 200: 201"),
    ("(xendpy-peer a (port x))", 1, "expected int: x"),
    ("(xend-relocation-hosts-allow '^10\\\\0\\\\5(')", 1, "no regular expression"),
    ("(xendpy-peer)", 1, "expected NAME"),
    ("(xendpy-peer a (release 5))", 1, "release must be one of"),
    ("(xendpy-peer a (tools 16))", 1, "tools must be one of 32, 64"),
    ("(a b)\n(c\n", 3, "unexpected EOF"),
    (")", 1, "syntax error: )"),
]


@pytest.mark.parametrize(("text", "line", "said"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_cannot_be_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, Path("/etc/xen/xend-config.sxp"))
    assert caught.value.line == line
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"/etc/xen/xend-config.sxp:{line}: ")


@pytest.mark.parametrize("word", ["yes", "Y", "1", "on", "TRUE", "t"])
def test_true_has_xend_s_spellings(word: str) -> None:
    assert parse(f"(xend-relocation-server {word})", Path("f")).config.relocation_server


@pytest.mark.parametrize("word", ["no", "N", "0", "off", "False", "f"])
def test_false_has_xend_s_spellings(word: str) -> None:
    config = parse(f"(xend-unix-xmlrpc-server {word})", Path("f")).config
    assert not config.unix_xmlrpc_server


def test_peers_are_rows() -> None:
    old = "(xendpy-peer old (address 192.0.2.5) (port 8010) (release 3.1) (tools 32))"
    config = parse(f"{old}(xendpy-peer new)", Path("f")).config
    assert config.peers == (
        PeerRow("old", "192.0.2.5", 8010, "3.1", 32),
        PeerRow("new", "new", 0, "4.2+", 64),
    )
    assert config.peer("old") == config.peers[0]
    assert config.peer("none") is None


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
