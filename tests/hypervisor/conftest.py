import pytest

from tests.disks import small_disk as mount_small_disk


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a file system of its own, 8 MiB large."""
    with mount_small_disk(tmp_path / "small", 8) as path:
        yield path
