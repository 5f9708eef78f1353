import os
import subprocess
import sys
import uuid

import pytest

from xendpy.errors import HypervisorUnavailable
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.statelock import StateLock, host_id

HOLD = """
import sys
from pathlib import Path
from xendpy.hypervisor.statelock import StateLock
lock = StateLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_daemon_is_told_the_pid_of_the_first(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(HypervisorUnavailable, match=rf"pid {first.pid}\b"):
            StateLock(tmp_path)
        first.kill()
        first.wait(40)
        StateLock(tmp_path).release()  # the system let go of it


def test_the_lock_is_free_after_release(tmp_path):
    first = StateLock(tmp_path)
    with pytest.raises(HypervisorUnavailable, match=str(os.getpid())):
        StateLock(tmp_path)
    first.release()
    first.release()
    StateLock(tmp_path).release()


def test_a_child_process_does_not_inherit_the_lock(tmp_path):
    lock = StateLock(tmp_path)
    with subprocess.Popen(["sleep", "30"], close_fds=False) as child:
        lock.release()
        StateLock(tmp_path).release()
        child.kill()


def test_the_host_id_is_made_once(tmp_path):
    first = host_id(tmp_path, Durable())
    assert str(uuid.UUID(first)) == first
    assert host_id(tmp_path, Durable()) == first


def test_a_damaged_host_id_is_not_replaced(tmp_path):
    (tmp_path / "host-id").write_text("not a uuid\n")
    with pytest.raises(HypervisorUnavailable, match="host-id"):
        host_id(tmp_path, Durable())
    assert (tmp_path / "host-id").read_text() == "not a uuid\n"
