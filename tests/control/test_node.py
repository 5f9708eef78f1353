from __future__ import annotations

import os
from pathlib import Path

import pytest

from xendpy.control.node import Host
from xendpy.guest.domain import DomainState, GuestType
from xendpy.hypervisor.base import Capabilities

STAT = """\
cpu  100 20 30 4000 500 6 7 8 0 0
cpu0 100 20 30 4000 500 6 7 8 0 0
btime 1700000000
"""
CPUINFO = """\
processor\t: 0
cpu MHz\t\t: 2445.404
siblings\t: 4
cpu cores\t: 2

processor\t: 1
cpu MHz\t\t: 1.0
"""
# XendNode.info of Xen 4.4, as `xm info` prints it
KEYS = (
    *("system", "host", "release", "version", "machine", "nr_cpus", "nr_nodes"),
    *("cores_per_socket", "threads_per_core", "cpu_mhz", "hw_caps", "virt_caps"),
    *("total_memory", "free_memory", "free_cpus", "cpu_topology", "numa_info"),
    *("xen_major", "xen_minor", "xen_extra", "xen_caps", "xen_scheduler", "xen_pagesize"),
    *("platform_params", "xen_changeset", "xen_commandline", "cc_compiler", "cc_compile_by"),
    *("cc_compile_domain", "cc_compile_date", "xend_config_format"),
)


def capabilities(*types: GuestType) -> Capabilities:
    return Capabilities(
        guest_types=frozenset(types),
        live_save=frozenset(),
        runs_guests=False,
        free_memory_bytes=5 << 30,
        total_memory_bytes=8 << 30,
    )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    proc.mkdir()
    (proc / "stat").write_text(STAT)
    (proc / "cpuinfo").write_text(CPUINFO)
    memory = "MemTotal:       24684032 kB\nMemFree: 1 kB\nMemAvailable: 2097152 kB\n"
    (proc / "meminfo").write_text(memory)
    (sys / "hypervisor" / "version").mkdir(parents=True)
    (sys / "devices" / "system" / "node" / "node0").mkdir(parents=True)
    (sys / "devices" / "system" / "node" / "node1").mkdir(parents=True)
    return Host(proc, sys)


def test_domain_0_is_the_host(host: Host) -> None:
    guest = host.domain_0()
    assert (guest.domid, guest.name, guest.state) == (0, "Domain-0", DomainState.RUNNING)
    assert guest.uuid == "00000000-0000-0000-0000-000000000000"
    assert guest.memory_mib == 24105
    assert guest.cpu_time_s == pytest.approx(171 / os.sysconf("SC_CLK_TCK"))
    assert guest.start_time_s == 1700000000
    assert guest.vcpus == os.cpu_count()


def test_on_xen_domain_0_has_what_xen_gave_it(host: Host, tmp_path: Path) -> None:
    given = tmp_path / "sys/devices/system/xen_memory/xen_memory0/info"
    given.mkdir(parents=True)
    (given / "current_kb").write_text("1048576\n")
    assert host.domain_0().memory_mib == 1024


def test_real_host_has_memory_and_has_worked() -> None:
    guest = Host().domain_0()
    assert guest.memory_mib > 64
    assert guest.cpu_time_s > 0


def test_info_has_xends_keys_in_order(host: Host) -> None:
    pairs = host.info(capabilities(GuestType.PV, GuestType.HVM), numa=True)
    assert [pair[0] for pair in pairs] == list(KEYS)  # type: ignore[index]
    values = dict(pairs)  # type: ignore[arg-type]
    assert values["total_memory"] == 24105  # the host's own, not the store's disk
    assert values["free_memory"] == 2048
    assert (values["cores_per_socket"], values["threads_per_core"]) == (2, 2)
    assert values["cpu_mhz"] == 2445
    assert values["nr_nodes"] == 2
    assert values["virt_caps"] == "hvm"
    assert values["xen_caps"] == (
        "xen-3.0-x86_64 xen-3.0-x86_32p hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
    )
    assert values["host"] == os.uname().nodename
    assert str(values["cpu_topology"]).startswith("\ncpu:    core    socket     node\n  0:       ")


def test_numa_lines_come_only_if_asked_for(host: Host) -> None:
    pairs = host.info(capabilities(), numa=False)
    wanted = [key for key in KEYS if key not in ("cpu_topology", "numa_info")]
    assert [pair[0] for pair in pairs] == wanted  # type: ignore[index]


def test_xen_below_speaks_for_itself(host: Host, tmp_path: Path) -> None:
    version = tmp_path / "sys" / "hypervisor" / "version"
    for name, text in (("major", "4\n"), ("minor", "17\n"), ("extra", ".7\n")):
        (version / name).write_text(text)
    values = dict(host.info(capabilities(GuestType.PV), numa=False))  # type: ignore[arg-type]
    assert (values["xen_major"], values["xen_minor"], values["xen_extra"]) == (4, 17, ".7")
    assert values["xen_scheduler"] == "credit"
    assert values["virt_caps"] == ""
    assert (values["total_memory"], values["free_memory"]) == (8192, 5120)


def test_host_without_proc_still_answers(tmp_path: Path) -> None:
    host = Host(tmp_path, tmp_path)
    assert host.domain_0().memory_mib == 1
    assert host.domain_0().cpu_time_s == 0.0
    assert len(host.info(capabilities(), numa=True)) == len(KEYS)
