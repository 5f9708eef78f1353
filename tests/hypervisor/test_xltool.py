import os
import threading
from pathlib import Path

import pytest

from xendpy.errors import HypervisorError, HypervisorUnavailable, ToolstackError
from xendpy.hypervisor import xltool
from xendpy.hypervisor.xltool import XlTool, failure

DATA = Path(__file__).parent.parent / "data" / "xl"


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A tool whose xl is a shell script: `SCRIPT` as its first argument."""
    program = tmp_path / "xl"
    program.write_text('#!/bin/sh\neval "$1"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    monkeypatch.setitem(xltool.ENVIRONMENT, "PATH", path)
    return XlTool()


def test_output_is_returned(tool):
    assert tool.run(["echo hello"]) == "hello\n"


def test_nothing_of_our_environment_or_descriptors_is_inherited(tool, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    with open("/dev/null") as open_file:
        os.set_inheritable(open_file.fileno(), True)
        said = tool.run([f"echo [$SECRET]; ls /proc/self/fd/{open_file.fileno()} || echo closed"])
    assert said == "[]\nclosed\n"


def test_a_failure_has_the_status_and_what_it_said(tool):
    with pytest.raises(ToolstackError) as caught:
        tool.run(["echo 'libxl: error: no' >&2; exit 3"])
    assert caught.value.status == 3
    assert caught.value.reason.endswith("failed with status 3: libxl: error: no")


CAUSES = [
    ("create-nokernel", "failed to open file '/nonexist'"),
    ("restore-short", 'Domain with name "tick" already exists'),
    ("destroy-99", "destroy failed (rc=-21)"),
]


@pytest.mark.parametrize(("name", "cause"), CAUSES)
def test_the_cause_is_told_and_not_how_xl_tidied_up(name, cause):
    status = int((DATA / f"{name}.rc").read_text())
    error = failure(["xl", name], status, (DATA / f"{name}.err").read_text())
    assert cause in error.reason


def test_how_far_xl_had_come_is_no_cause():
    said = (
        "Saving to /dev/fd/7 new xl format (info 0x3/0x0/1171)\n"
        "xc: info: Saving domain 3, type x86 PV\n"
        "the file descriptor went away\n"
        "xc: progress: Frames: 2048/24576 8%\n"
    )
    assert failure(["xl"], 1, said).reason.endswith("status 1: the file descriptor went away")
    assert failure(["xl", "save"], -9, said).reason == "xl save was killed by signal 9"


def test_what_takes_too_long_is_ended(tool):
    with pytest.raises(HypervisorError, match=r"took longer than 0\.1 s"):
        tool.run(["exec sleep 60"], timeout_s=0.1)


def test_a_failed_child_takes_its_group_along(tool):
    reader, writer = os.pipe()
    child = tool.start(["sleep 60 & exit 1"], stdout=writer)
    os.close(writer)
    with pytest.raises(ToolstackError):
        child.wait(80)
    assert os.read(reader, 1) == b""  # nobody holds the other end any more
    os.close(reader)


def test_what_a_successful_child_leaves_behind_lives_on(tool):
    reader, writer = os.pipe()
    go, let_go = os.pipe()
    child = tool.start(
        [f"setsid sh -c 'read line </dev/fd/{go}; echo $line' & exit 0"],
        stdout=writer,
        pass_fds=(go,),
    )
    os.close(writer)
    os.close(go)
    child.wait(80)
    child.kill()
    os.write(let_go, b"alive\n")
    assert os.read(reader, 10) == b"alive\n"
    os.close(let_go)
    os.close(reader)


def test_another_thread_can_end_a_child(tool):
    child = tool.start(["exec sleep 60"])
    thread = threading.Thread(target=child.kill)
    thread.start()
    with pytest.raises(ToolstackError, match="killed by signal 15"):
        child.wait(80)
    thread.join()


def test_stdin_reaches_the_child(tool):
    reader, writer = os.pipe()
    answer, said = os.pipe()
    child = tool.start(["cat"], stdin=reader, stdout=said)
    os.close(reader)
    os.close(said)
    os.write(writer, b"page")
    os.close(writer)
    child.wait(80)
    assert os.read(answer, 10) == b"page"
    os.close(answer)


def test_a_descriptor_is_passed_by_its_number(tool):
    reader, writer = os.pipe()
    child = tool.start([f"echo page > /dev/fd/{writer}"], pass_fds=(writer,))
    os.close(writer)
    child.wait(80)
    assert os.read(reader, 10) == b"page\n"
    os.close(reader)


def test_a_host_without_xl_is_told_so(monkeypatch):
    monkeypatch.setitem(xltool.ENVIRONMENT, "PATH", "/nonexistent")
    with pytest.raises(HypervisorUnavailable, match="xl is not installed"):
        XlTool()
