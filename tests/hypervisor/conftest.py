import pytest

from tests.disks import small_disk as mount_small_disk
from tests.peers.fake_xl import FakeXl
from tests.peers.xl_driver import driver


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a file system of its own, 8 MiB large."""
    with mount_small_disk(tmp_path / "small", 8) as path:
        yield path


@pytest.fixture
def xl():
    return FakeXl()


@pytest.fixture
def hypervisor(tmp_path, xl):
    """The xl driver on that xl; tests of another driver have a fixture of their own."""
    opened = driver(tmp_path, xl)
    yield opened
    opened.close()
