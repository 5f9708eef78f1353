import os
import random

import pytest

from tests.powercut import ALL, NONE, Kept, Recorder, leave
from xendpy.hypervisor.durable import Durable, OperationKind


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return root


def after(recorder: Recorder, root, target, count: int, kept: Kept):
    leave(recorder.operations[:count], root, target, kept)
    return target


def test_a_file_is_synced_before_it_is_renamed_and_its_directory_after(root):
    recorder = Recorder()
    Durable(recorder).write_file(root / "file", b"new")
    assert [operation.kind for operation in recorder.operations] == [
        OperationKind.CREATE,
        OperationKind.APPEND,
        OperationKind.SYNC,
        OperationKind.RENAME,
        OperationKind.SYNC_DIR,
    ]
    assert (root / "file").read_bytes() == b"new"
    assert [entry.name for entry in root.iterdir()] == ["file"]


@pytest.mark.parametrize("kept", [ALL, NONE], ids=["killed", "power cut"])
def test_a_file_is_old_or_new_at_every_moment(root, tmp_path, kept):
    recorder = Recorder()
    durable = Durable(recorder)
    durable.write_file(root / "file", b"old")
    begin = len(recorder.operations)
    durable.write_file(root / "file", b"new")
    seen = []
    for count in range(begin, len(recorder.operations) + 1):
        left = after(recorder, root, tmp_path / f"cut{count}", count, kept)
        seen.append((left / "file").read_bytes())
    assert seen[0] == b"old" and seen[-1] == b"new"
    assert sorted(seen, reverse=True) == seen and set(seen) == {b"old", b"new"}


@pytest.mark.parametrize("seed", range(10))
def test_a_file_is_old_or_new_whatever_the_disk_wrote_first(root, tmp_path, seed):
    recorder = Recorder()
    durable = Durable(recorder)
    durable.write_file(root / "file", b"old")
    begin = len(recorder.operations)
    durable.write_file(root / "file", b"new")
    chance = random.Random(seed)
    for count in range(begin, len(recorder.operations) + 1):
        left = after(
            recorder, root, tmp_path / f"cut{count}", count, lambda: chance.random() < 0.5
        )
        assert (left / "file").read_bytes() in (b"old", b"new")
    assert (left / "file").read_bytes() == b"new"


def test_a_torn_temporary_file_does_not_stop_the_next_write(root):
    (root / ".file.new").write_bytes(b"torn")
    Durable().write_file(root / "file", b"whole")
    assert (root / "file").read_bytes() == b"whole"


def test_a_directory_and_those_above_it_last(root, tmp_path):
    recorder = Recorder()
    Durable(recorder).mkdir(root / "a" / "b")
    left = after(recorder, root, tmp_path / "cut", 99, NONE)
    assert (left / "a" / "b").is_dir()


def test_a_renamed_directory_is_in_one_place_for_good(root, tmp_path):
    recorder = Recorder()
    durable = Durable(recorder)
    durable.mkdir(root / "from" / "guest")
    durable.mkdir(root / "to")
    durable.rename(root / "from" / "guest", root / "to" / "guest")
    left = after(recorder, root, tmp_path / "cut", 99, NONE)
    assert (left / "to" / "guest").is_dir() and not (left / "from" / "guest").exists()


def test_appended_records_last_once_synced(root, tmp_path):
    recorder = Recorder()
    durable = Durable(recorder)
    path = root / "journal"
    fd = durable.create(path)
    durable.sync_dir(root)
    durable.append(fd, path, b"one\n")
    durable.sync(fd, path)
    durable.append(fd, path, b"two\n")
    os.close(fd)
    killed = after(recorder, root, tmp_path / "killed", 99, ALL)
    cut = after(recorder, root, tmp_path / "cut", 99, NONE)
    assert (killed / "journal").read_bytes() == b"one\ntwo\n" == path.read_bytes()
    assert (cut / "journal").read_bytes() == b"one\n"


def test_a_tree_is_removed_without_following_links(root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    durable = Durable()
    durable.mkdir(root / "tree" / "deep")
    durable.write_file(root / "tree" / "deep" / "file", b"x")
    (root / "tree" / "link").symlink_to(outside)
    durable.remove_tree(root / "tree")
    durable.remove_tree(root / "tree")
    assert not (root / "tree").exists() and (outside / "kept").exists()


def test_unlinking_what_is_not_there_is_no_error(root):
    durable = Durable()
    durable.write_file(root / "file", b"x")
    durable.unlink(root / "file")
    durable.unlink(root / "file")
    assert list(root.iterdir()) == []
