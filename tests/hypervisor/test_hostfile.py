"""Which files and devices of this host a received guest may have, and how they are opened."""

import fcntl
import os
import signal
import stat
from pathlib import Path

import pytest

from tests.guests import guest
from tests.peers.xl_driver import driver
from xendpy.errors import DomainError
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.hostfile import is_anybodys, kind_of, opened
from xendpy.hypervisor.xlrules import GuestRules

RULES = GuestRules()  # as they are where the operator has set none


def refused(path, what="disk", rules=RULES):
    with pytest.raises(DomainError) as error:
        (rules.disk if what == "disk" else rules.kernel)("web1", str(path))
    assert error.value.reason.startswith(f"{what} {path} ")
    return error.value.reason.removeprefix(f"{what} {path} ")


@pytest.fixture
def images(tmp_path):
    """A directory of images, allowed beside /dev."""
    place = tmp_path / "images"
    place.mkdir()
    return place


@pytest.fixture
def rules(images):
    return GuestRules(guest_paths=(str(images), "/dev"))


@pytest.fixture
def anybodys(request):
    """A name in /dev/shm, where every user of this host may write."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no /dev/shm")
    path = Path(f"/dev/shm/xendpy-test-{os.getpid()}")
    request.addfinalizer(lambda: path.unlink(missing_ok=True))
    return path


@pytest.mark.parametrize("what", ["disk", "kernel"])
@pytest.mark.parametrize(
    "path", ["/dev/fd/../root/etc/passwd", "/dev/../etc/passwd", "/dev/fd/../cwd", "/dev/stdin\0"]
)
def test_no_way_leads_out_of_dev(path, what):
    assert refused(path, what).startswith("is not below ")


def test_a_link_of_a_local_user_is_not_followed(anybodys):
    anybodys.symlink_to("/etc/passwd")
    assert refused(anybodys).startswith("is not below ")
    assert refused(anybodys, "kernel").startswith("is not below ")


def test_what_a_local_user_may_exchange_is_no_disk(anybodys):
    text = "is named through a directory in which anybody may write"
    assert refused(anybodys) == text  # he may put a link there in the next moment
    anybodys.touch()
    assert refused(anybodys) == text
    assert refused(f"/dev/fd/../root{anybodys}") == text
    assert refused(anybodys, "kernel") == "is below /dev, where no kernels are"


def test_below_dev_only_block_devices_are_disks(rules, images):
    for path in ("/dev/null", "/dev/watchdog", "/dev/tty"):
        if kind_of(path):
            assert refused(path) == "is a character device: a block device was expected"
    assert refused("/dev/shm") == "is a directory: a block device was expected"
    assert refused("/dev/null", "kernel") == "is below /dev, where no kernels are"
    (images / "null").symlink_to("/dev/null")
    assert refused(images / "null", rules=rules).startswith("is not below ")


def test_a_link_within_dev_leads_to_its_block_device(tmp_path):
    block = next((p for p in Path("/dev").iterdir() if kind_of(str(p)) == "a block device"), None)
    if block is None or not os.access("/dev", os.W_OK):
        pytest.skip("no block device to link to")
    place = Path(f"/dev/xendpy-test-{os.getpid()}")
    place.mkdir(mode=0o755)
    try:
        (place / "lv").symlink_to(f"../{block.name}")
        assert RULES.disk("web1", str(place / "lv")) == str(place / "lv")
        place.chmod(0o777)
        assert "anybody may write" in refused(place / "lv")
    finally:
        (place / "lv").unlink(missing_ok=True)
        place.rmdir()


def test_elsewhere_files_are_disks_and_kernels(rules, images):
    (images / "file").touch()
    (images / "link").symlink_to("file")
    os.mkfifo(images / "pipe")
    for name in ("file", "link", "not-there"):
        assert rules.disk("web1", f"{images}/{name}") == f"{images}/{name}"
        assert rules.kernel("web1", f"{images}/{name}") == f"{images}/{name}"
    wanted = "is a pipe: a file or a block device was expected"
    assert refused(images / "pipe", rules=rules) == wanted
    assert refused(images / "pipe", "kernel", rules) == "is a pipe: a file was expected"
    assert refused(images, rules=rules).startswith("is not below ")


@pytest.mark.timeout(40)
@pytest.mark.parametrize("writable", [True, False])
def test_only_files_and_block_devices_are_opened(tmp_path, *, writable):
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_bytes(b"x")
    for path, kind in ((pipe, "a pipe"), ("/dev/null", "a character device"), (tmp_path, "a dir")):
        with pytest.raises(OSError, match=f"it is {kind}"), opened(str(path), writable=writable):
            raise AssertionError("opened")
    with opened(str(file), writable=writable) as fd:
        assert stat.S_ISREG(os.fstat(fd).st_mode)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError), opened(str(tmp_path / "none")):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_directories_that_are_not_there_are_nobodys(tmp_path):
    tmp_path.chmod(0o700)
    assert not is_anybodys(str(tmp_path / "a/b/c"), str(tmp_path.parent))
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o1777)
    assert is_anybodys(str(tmp_path / "a/b/c"), str(tmp_path.parent))
    assert not is_anybodys(str(tmp_path / "a/b"), str(tmp_path / "a"))


@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_a_disk_keeps_nobody_waiting(xl, tmp_path):
    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / "images/pipe")
    disk = f"(device (vbd (uname file:{tmp_path}/images/pipe) (dev xvda) (mode w)))"
    config = DomainConfig.parse(guest().encode().replace(b"(shadow_memory 0)", disk.encode()))
    own = driver(tmp_path, xl, confined=False)  # where nothing but the opening is between them
    with (
        pytest.raises(DomainError, match="cannot be opened here: it is a pipe"),
        own.restore(config),
    ):
        raise AssertionError("let in")
    own.close()


def test_a_file_that_is_lent_to_somebody_is_waited_for(tmp_path):
    """As an NFS server lends files to its clients: opening one calls it back first."""
    file = tmp_path / "disk"
    file.touch()
    lent = os.open(file, os.O_RDONLY)
    before = signal.signal(
        signal.SIGIO, lambda *_: fcntl.fcntl(lent, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    )
    try:
        fcntl.fcntl(lent, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        with opened(str(file), writable=True):
            assert fcntl.fcntl(lent, fcntl.F_GETLEASE) == fcntl.F_UNLCK
    finally:
        signal.signal(signal.SIGIO, before)
        os.close(lent)
