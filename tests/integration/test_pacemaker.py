"""A cluster's manager moves a guest: ocf:heartbeat:Xen of Debian's resource-agents.

The agent is the system's, or unpacked below the directory that XENDPY_OCF_ROOT names, or fetched
with apt-get into a scratch directory; without any of these there is nothing to test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.hosts import Host, pair

AGENT = "resource.d/heartbeat/Xen"
OCF_SUCCESS, OCF_NOT_RUNNING = 0, 7

pytestmark = pytest.mark.timeout(480)


@pytest.fixture(scope="module")
def ocf_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for place in (os.environ.get("XENDPY_OCF_ROOT", ""), "/usr/lib/ocf"):
        if place and (Path(place) / AGENT).exists():
            return Path(place)
    scratch = tmp_path_factory.mktemp("agents")
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        pytest.skip("no resource-agents, and no apt-get to fetch them")
    fetched = subprocess.run(
        ["apt-get", "download", "resource-agents"], cwd=scratch, capture_output=True, timeout=60
    )
    packages = list(scratch.glob("resource-agents_*.deb"))
    if fetched.returncode or not packages:
        pytest.skip("no resource-agents, and the package cannot be fetched")
    subprocess.run(["dpkg", "-x", packages[0], scratch], check=True, timeout=240)
    return scratch / "usr/lib/ocf"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with pair(tmp_path) as both:
        yield both


class Agent:
    """The resource agent on one host, as the cluster's manager calls it."""

    def __init__(self, host: Host, ocf_root: Path, config: Path) -> None:
        tools = host.root / "bin"
        tools.mkdir()
        xm = tools / "xm"
        xm.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m xendpy.cli.xm "$@"\n')
        xm.chmod(0o755)
        self._program = ocf_root / AGENT
        self._environ = {
            **host.environ(),
            "PATH": f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OCF_ROOT": str(ocf_root),
            "OCF_FUNCTIONS_DIR": str(ocf_root / "lib/heartbeat"),
            "OCF_RESOURCE_INSTANCE": "testvm1",
            "OCF_RESOURCE_TYPE": "Xen",
            "OCF_RESKEY_xmfile": str(config),
            "OCF_RESKEY_CRM_meta_timeout": "30000",
            "HA_RSCTMP": str(host.root),
            "HA_LOGFILE": str(host.root / "agent.log"),
        }

    def call(self, action: str, *, target: str = "") -> int:
        """Call the agent; return its exit code."""
        environ = {**self._environ, "OCF_RESKEY_CRM_meta_migrate_target": target}
        done = subprocess.run(
            ["/bin/sh", str(self._program), action],
            env=environ,
            capture_output=True,
            text=True,
            timeout=240,
        )
        print(f"{action}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.returncode


def test_the_manager_moves_a_guest_there_and_back(
    hosts: tuple[Host, Host], ocf_root: Path, tmp_path: Path
) -> None:
    here, there = hosts
    config = tmp_path / "testvm1.cfg"
    config.write_text(
        'name = "testvm1"\nmemory = 16\nkernel = "xendpy:ticker"\nextra = "tick=0.1"\n'
    )
    mine, theirs = (Agent(host, ocf_root, config) for host in hosts)
    assert mine.call("start") == OCF_SUCCESS
    assert mine.call("monitor") == OCF_SUCCESS and theirs.call("monitor") == OCF_NOT_RUNNING

    assert mine.call("migrate_to", target="et-virt08") == OCF_SUCCESS
    assert theirs.call("migrate_from") == OCF_SUCCESS
    assert mine.call("monitor") == OCF_NOT_RUNNING and theirs.call("monitor") == OCF_SUCCESS
    assert here.guests() == [] and there.guests() == ["testvm1"]

    assert theirs.call("migrate_to", target="et-virt07") == OCF_SUCCESS
    assert mine.call("migrate_from") == OCF_SUCCESS
    numbers = [int(line.rpartition("#")[2]) for line in here.console("testvm1")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert mine.call("stop") == OCF_SUCCESS and here.guests() == []


def test_a_migration_that_fails_leaves_it_where_it_is(
    hosts: tuple[Host, Host], ocf_root: Path, tmp_path: Path
) -> None:
    here, there = hosts
    config = tmp_path / "testvm1.cfg"
    config.write_text('name = "testvm1"\nmemory = 16\nkernel = "xendpy:ticker"\n')
    mine = Agent(here, ocf_root, config)
    assert mine.call("start") == OCF_SUCCESS
    there.stop()
    assert mine.call("migrate_to", target="et-virt08") == 1
    assert mine.call("monitor") == OCF_SUCCESS
