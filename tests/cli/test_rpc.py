"""Where xm finds the daemon, and how an escaped string reads."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.fake_xend import FakeXend, fault
from xendpy.cli.rpc import BrokenAnswer, Server, Unreachable, server_uri, unescape
from xendpy.errors import RpcError
from xendpy.paths import Paths

STRINGS = [
    ("", ""),
    ("plain", "plain"),
    (r"a\nb", "a\nb"),
    (r"a\\nb", r"a\nb"),
    (r"\047x\047", "'x'"),
    (r"it's", "it's"),
    (r"caf\xc3\xa9", "café"),
    (r"\xe9", "\ufffd"),
    ("\\", "\\"),
    ("snow \u2603", "snow \u2603"),
    (r"\t\r\x41\q", "\t\rAq"),
]


@pytest.mark.parametrize(("sent", "meant"), STRINGS)
def test_top_level_string_is_unescaped(sent: str, meant: str) -> None:
    assert unescape(sent) == meant


def test_nested_strings_are_left_alone(tmp_path: Path) -> None:
    with FakeXend(tmp_path / "s", {"x": ["a\\nb"], "y": {"k": "\\x41"}}):
        server = Server(f"httpu://{tmp_path}/s")
        assert server.call("x") == ["a\\nb"]
        assert server.call("y") == {"k": "\\x41"}


def test_none_goes_both_ways(tmp_path: Path) -> None:
    with FakeXend(tmp_path / "s", {"echo": lambda *args: list(args)}):
        assert Server(f"httpu://{tmp_path}/s").call("echo", None, True, 3) == [None, True, 3]


def test_fault_keeps_its_code(tmp_path: Path) -> None:
    with (
        FakeXend(tmp_path / "s", {"x": fault(2, "no room")}),
        pytest.raises(RpcError, match="no room") as caught,
    ):
        Server(f"httpu://{tmp_path}/s").call("x")
    assert caught.value.code == 2


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    with FakeXend(tmp_path / "s", {"x": 1}) as fake:
        server = Server(f"httpu://{tmp_path}/s")
        assert server.call("x") == 1
        fake.replies["raw"] = b""  # the daemon dies over the second call of this connection
        with pytest.raises(BrokenAnswer):
            server.call("xend.domain.migrate")
    assert [name for name, _ in fake.calls] == ["x", "raw"]


@pytest.mark.parametrize("unix", [True, False])
def test_call_after_an_idle_connection_was_closed(tmp_path: Path, *, unix: bool) -> None:
    with FakeXend(tmp_path / "s" if unix else None, {"x": 1}) as fake:
        server = Server(f"httpu://{tmp_path}/s" if unix else f"http://127.0.0.1:{fake.port}")
        for _ in range(3):
            assert server.call("x") == 1
            fake.hang_up()
    assert [name for name, _ in fake.calls] == ["x", "x", "x"]


WRITES_AT_LENGTH = """
import signal, sys
from xendpy.cli.rpc import Server, Unreachable
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
try:
    Server(sys.argv[1]).call("x", "a" * (16 << 20))
except Unreachable as error:
    print(error.reason)
assert signal.SIGPIPE not in signal.sigpending() | signal.pthread_sigmask(signal.SIG_BLOCK, ())
"""


def test_daemon_that_goes_away_kills_nobody(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        command = [sys.executable, "-c", WRITES_AT_LENGTH, f"httpu://{tmp_path}/s"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            with listener.accept()[0] as connection:
                connection.recv(1)  # the rest is more than a socket holds
            assert process.communicate(timeout=120)[0] == "Broken pipe\n"
    assert process.returncode == 0


def test_http(tmp_path: Path) -> None:
    with FakeXend(None, {"x": ["a"]}) as fake:
        assert Server(f"http://127.0.0.1:{fake.port}").call("x") == ["a"]


def test_other_protocol_is_refused() -> None:
    with pytest.raises(Unreachable, match="unsupported protocol in 'ssh://root@h'"):
        Server("ssh://root@h").call("x")


XM_CONFIG = '<xm><server type="{}" uri="http://h:8006"/></xm>'
URIS = [
    ("default", {}, "", False, "httpu://{root}/var/run/xend/xmlrpc.sock", ""),
    ("environment", {"XM_SERVER": "http://a"}, "", False, "http://a", ""),
    (
        "root-wins",
        {"XM_SERVER": "http://a"},
        "",
        True,
        "httpu://{root}/var/run/xend/xmlrpc.sock",
        "",
    ),
    ("file", {}, XM_CONFIG.format("LegacyXMLRPC"), False, "http://h:8006", ""),
    (
        "file-of-other-type",
        {},
        XM_CONFIG.format("Xen-API"),
        False,
        "httpu://{root}/var/run/xend/xmlrpc.sock",
        "Invalid server type Xen-API; using LegacyXMLRPC.\n",
    ),
    (
        "broken-file",
        {},
        "<xm>",
        False,
        "httpu://{root}/var/run/xend/xmlrpc.sock",
        "Ignoring invalid configuration file {root}/etc/xen/xm-config.xml.\n",
    ),
]


@pytest.mark.parametrize(
    ("environ", "file", "root_given", "uri", "err"),
    [row[1:] for row in URIS],
    ids=[row[0] for row in URIS],
)
def test_uri(
    environ: dict[str, str],
    file: str,
    root_given: bool,
    uri: str,
    err: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = Paths(tmp_path)
    if file:
        paths.config_dir.mkdir(parents=True)
        (paths.config_dir / "xm-config.xml").write_text(file)
    found = server_uri(paths, root_given=root_given, environ=environ)
    assert found == uri.format(root=tmp_path)
    assert capsys.readouterr().err == err.format(root=tmp_path)
