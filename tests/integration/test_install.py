"""`make install` into a DESTDIR: what is there, that it starts, and that it goes again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
INSTALLED = (
    "etc/init.d/xend",
    "etc/logrotate.d/xend",
    "etc/xen/xend-config.sxp",
    "usr/bin/virt-ssh-helper",
    "usr/lib/systemd/system/xend.service",
    "usr/lib/tmpfiles.d/xendpy.conf",
    "usr/lib/xendpy/bin/python",
    "usr/sbin/xend",
    "usr/sbin/xm",
    "usr/share/bash-completion/completions/xend",
    "usr/share/bash-completion/completions/xm",
    "usr/share/man/man1/xm.1",
    "usr/share/man/man5/xend-config.sxp.5",
    "usr/share/man/man8/xend.8",
    "usr/share/xendpy/unprivileged.conf",
)
KEPT = {"etc/xen/xend-config.sxp"}

# In a mount namespace of its own, on top of this host's files: what an administrator types on a
# host whose init is not systemd. $1: the DESTDIR, $2: the configuration.
SERVICE_SESSION = """
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin  # somebody's own xm, in a place before these, is not meant
mount -t overlay overlay -o "lowerdir=$1/usr:/usr" /usr
mount -t overlay overlay -o "lowerdir=$1/etc:/etc" /etc
mount --bind "$2" /etc/xen/xend-config.sxp
for directory in /run /var/lib /var/log; do mount -t tmpfs tmpfs "$directory"; done
mkdir -p /run/lock
cd /
trap 'service xend stop' EXIT
service xend status && exit 91 || test $? = 3
service xend start
service xend status
test -e /var/lock/xend
first=$(cat /run/xend.pid)
service xend restart
second=$(cat /run/xend.pid)
test "$first" != "$second"
service xend reload
service xend try-restart
service xend status
xm list > /run/listed
cat /run/listed "/proc/$(cat /run/xend.pid)/comm"
service xend stop
test ! -e /var/lock/xend
service xend status && exit 92 || test $? = 3
service xend stop
service xend try-restart
service xend bogus && exit 93 || test $? = 2
echo done
"""

pytestmark = pytest.mark.timeout(1200)


def make(target: str, destdir: Path) -> None:
    done = subprocess.run(
        ["make", "--silent", target, f"DESTDIR={destdir}"],
        cwd=PROJECT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=960,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def environment(**more: str) -> Mapping[str, str]:
    """Return this environment without what belongs to the make that runs the tests."""
    mine = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "XENDPY_ROOT", "XEND_CONFIG")
    }
    return mine | more


@pytest.fixture(scope="module")
def destdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("make"):
        pytest.skip("no make")
    directory = tmp_path_factory.mktemp("installed")
    make("install", directory)
    return directory


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def configure(path: Path, port: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"(xend-relocation-server yes)\n(xend-relocation-port {port})\n"
        "(xend-relocation-address '127.0.0.1')\n(xend-relocation-hosts-allow '^localhost$')\n"
    )
    return path


@pytest.fixture
def root(tmp_path: Path, port: int, destdir: Path) -> Iterator[Path]:
    """A root with a configuration; a daemon that a test leaves behind there is stopped."""
    configure(tmp_path / "etc/xen/xend-config.sxp", port)
    yield tmp_path
    run(destdir / "usr/sbin/xend", "--root", tmp_path, "stop")


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in argv],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("name", INSTALLED)
def test_everything_is_there(name: str, destdir: Path) -> None:
    assert (destdir / name).exists()


def test_nothing_names_the_place_it_was_made_in(destdir: Path) -> None:
    texts = [*(destdir / "usr/lib/xendpy/bin").iterdir(), destdir / "usr/lib/xendpy/pyvenv.cfg"]
    texts += [destdir / name for name in INSTALLED if "bin/" not in name]
    assert [path for path in texts if str(destdir).encode() in path.read_bytes()] == []


def test_a_daemon_starts_from_there(destdir: Path, root: Path, port: int) -> None:
    xend, xm = destdir / "usr/sbin/xend", destdir / "usr/sbin/xm"
    started = run(xend, "--root", root, "start")
    assert (started.returncode, started.stderr) == (0, "")
    with socket.create_connection(("127.0.0.1", port), timeout=40):
        pass
    pid = (root / "var/run/xend.pid").read_text()
    assert Path(f"/proc/{pid}/comm").read_text().startswith("python")
    assert run(xm, "--root", root, "list").stdout.split()[:2] == ["Name", "ID"]
    assert run(xend, "--root", root, "stop").returncode == 0
    assert run(xend, "--root", root, "status").returncode == 3


@pytest.mark.skipif(not shutil.which("lsof"), reason="no lsof")
def test_lsof_shows_python_listening_on_ipv4(destdir: Path, root: Path, port: int) -> None:
    assert run(destdir / "usr/sbin/xend", "--root", root, "start").returncode == 0
    lines = run("lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN").stdout.splitlines()
    command, *_, kind = lines[1].split()[:5]
    assert command.startswith("python")
    assert kind == "IPv4"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd")
@pytest.mark.parametrize("drop_in", ["", "unprivileged.conf"], ids=["root", "unprivileged"])
def test_systemd_takes_the_unit(drop_in: str, destdir: Path, tmp_path: Path) -> None:
    unit = tmp_path / "xend.service"
    text = (destdir / "usr/lib/systemd/system/xend.service").read_text()
    unit.write_text(text.replace("/usr/lib/xendpy", f"{destdir}/usr/lib/xendpy"))
    if drop_in:
        (tmp_path / "xend.service.d").mkdir()
        shutil.copy(destdir / "usr/share/xendpy" / drop_in, tmp_path / "xend.service.d")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        env=environment(SYSTEMD_UNIT_PATH=f"{tmp_path}:"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_init_script_works_without_systemd(destdir: Path, tmp_path: Path, port: int) -> None:
    if not may_mount() or not shutil.which("service"):
        pytest.skip("needs root, mount namespaces and service")
    config = configure(tmp_path / "xend-config.sxp", port)
    argv = ["unshare", "--mount", "sh", "-c", SERVICE_SESSION, "session", destdir, config]
    done = run(*argv)
    assert done.returncode == 0, done.stdout + done.stderr
    header, comm, last = _told(done.stdout)
    assert header.startswith("Name ")
    assert comm.startswith("python")
    assert last == "done"


def _told(output: str) -> tuple[str, str, str]:
    lines = output.splitlines()
    header = next(line for line in lines if line.startswith("Name "))
    comm = next(line for line in lines if line.startswith("python"))
    return header, comm, lines[-1]


def may_mount() -> bool:
    """Whether a mount namespace with an overlay of its own is to be had here."""
    if os.geteuid() or not shutil.which("unshare"):
        return False
    probe = "mount -t overlay overlay -o lowerdir=/usr:/etc /usr && mount -t tmpfs tmpfs /run"
    return run("unshare", "--mount", "sh", "-c", probe).returncode == 0


def test_installing_again_keeps_the_configuration_and_uninstalling_removes_the_rest(
    destdir: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(destdir, again, symlinks=True)
    config = again / "etc/xen/xend-config.sxp"
    config.write_text("(xend-relocation-server yes)\n")
    make("install", again)
    assert config.read_text() == "(xend-relocation-server yes)\n"
    assert run(again / "usr/sbin/xend", "--version").returncode == 0
    make("uninstall", again)
    left = {str(path.relative_to(again)) for path in again.rglob("*") if not path.is_dir()}
    assert left == KEPT
