"""The host itself: Domain-0, and what `xm info` shows.

Sources: /proc and /sys of Linux; the keys and their order are XendNode.info's, Xen 4.4. Without a
hypervisor below, what only Xen could say stays empty.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from xendpy import __version__
from xendpy.control.domain_sxp import DOMAIN_0, DOMAIN_0_UUID, Tree
from xendpy.guest.domain import DomainConfig, DomainState, DomainSummary, GuestType
from xendpy.hypervisor.base import Capabilities

_MIB = 1 << 20
_BUSY = (0, 1, 2, 5, 6, 7)  # /proc/stat: user nice system, irq softirq steal; not idle, iowait
_CAPS = {
    GuestType.PV: ("xen-3.0-x86_64", "xen-3.0-x86_32p"),
    GuestType.HVM: ("hvm-3.0-x86_32", "hvm-3.0-x86_32p", "hvm-3.0-x86_64"),
}


class Host:
    """What the kernel says of this host; `proc` and `sys` are its two windows.

    All calls read small files of the kernel's own and are quick.
    """

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._proc = proc
        self._sys = sys

    def domain_0(self) -> DomainSummary:
        """Return the host as the guest number 0 that xend always showed first."""
        memory = max(1, self._own_memory_mib())
        cpus = self.nr_cpus()
        return DomainSummary(
            domid=0,
            uuid=DOMAIN_0_UUID,
            name=DOMAIN_0,
            state=DomainState.RUNNING,
            memory_mib=memory,
            maxmem_mib=memory,
            vcpus=cpus,
            online_vcpus=cpus,
            cpu_time_s=self.cpu_time_s(),
            start_time_s=self._boot_time_s(),
            config=_domain_0_config(memory, cpus),
        )

    def nr_cpus(self) -> int:
        return os.cpu_count() or 1

    def cpu_time_s(self) -> float:
        """Return the seconds that all cpus were busy since boot."""
        fields = self._stat_line("cpu")
        ticks = sum(int(fields[index]) for index in _BUSY if index < len(fields))
        return ticks / os.sysconf("SC_CLK_TCK")

    def info(self, capabilities: Capabilities, *, numa: bool) -> list[Tree]:
        """Return `[[key, value], ...]` in XendNode.info's order."""
        name = os.uname()
        pairs: list[tuple[str, Tree]] = [
            ("system", name.sysname),
            ("host", name.nodename),
            ("release", name.release),
            ("version", name.version),
            ("machine", name.machine),
            *self._processors(capabilities),
            *self._memory(capabilities),
            ("free_cpus", 0),
            *((("cpu_topology", self._topology()), ("numa_info", "none")) if numa else ()),
            *self._xen(capabilities),
            ("xend_config_format", 4),
        ]
        return [[key, value] for key, value in pairs]

    def _memory(self, capabilities: Capabilities) -> list[tuple[str, Tree]]:
        """Return the hypervisor's memory in MiB; without one, the host's own."""
        if self._xen_file("version/major"):
            total = capabilities.total_memory_bytes // _MIB
            free = capabilities.free_memory_bytes // _MIB
        else:
            total, free = self._memory_mib(), self._memory_mib("MemAvailable")
        return [("total_memory", total), ("free_memory", free)]

    def _processors(self, capabilities: Capabilities) -> list[tuple[str, Tree]]:
        cpuinfo = self._cpuinfo()
        cores = _number(cpuinfo.get("cpu cores"), self.nr_cpus())
        return [
            ("nr_cpus", self.nr_cpus()),
            ("nr_nodes", self._nr_nodes()),
            ("cores_per_socket", cores),
            ("threads_per_core", max(1, _number(cpuinfo.get("siblings"), cores) // cores)),
            ("cpu_mhz", _number(cpuinfo.get("cpu MHz"), 0)),
            ("hw_caps", ""),
            ("virt_caps", "hvm" if GuestType.HVM in capabilities.guest_types else ""),
        ]

    def _xen(self, capabilities: Capabilities) -> list[tuple[str, Tree]]:
        """Return the hypervisor's lines; without one, the version of the interface: Xen 4.4."""
        kinds = sorted(capabilities.guest_types, reverse=True)
        shown = "".join(f"{cap} " for kind in kinds for cap in _CAPS[kind])
        return [
            ("xen_major", _number(self._xen_file("version/major"), 4)),
            ("xen_minor", _number(self._xen_file("version/minor"), 4)),
            ("xen_extra", self._xen_file("version/extra") or f"-xendpy-{__version__}"),
            ("xen_caps", self._xen_file("properties/capabilities") or shown),
            ("xen_scheduler", "credit"),
            ("xen_pagesize", _number(self._xen_file("properties/pagesize"), 4096)),
            ("platform_params", self._virtual_start()),
            ("xen_changeset", self._xen_file("properties/changeset")),
            ("xen_commandline", ""),
            ("cc_compiler", self._xen_file("compilation/compiler")),
            ("cc_compile_by", self._xen_file("compilation/compiled_by")),
            ("cc_compile_domain", ""),
            ("cc_compile_date", self._xen_file("compilation/compile_date")),
        ]

    def _virtual_start(self) -> str:
        start = self._xen_file("properties/virtual_start")
        return f"virt_start=0x{start.removeprefix('0x')}" if start else ""

    def _topology(self) -> str:
        """Return xend's table, which begins with a line feed."""
        lines = ["", "cpu:    core    socket     node"]
        for cpu in range(self.nr_cpus()):
            base = f"devices/system/cpu/cpu{cpu}/topology"
            core = _number(self._read(self._sys / base / "core_id"), cpu)
            socket = _number(self._read(self._sys / base / "physical_package_id"), 0)
            lines.append(f"{cpu:3d}:{core:8d} {socket:8d} {self._node_of(cpu):8d}")
        return "\n".join(lines)

    def _node_of(self, cpu: int) -> int:
        for node in self._sys.glob(f"devices/system/cpu/cpu{cpu}/node[0-9]*"):
            return int(node.name.removeprefix("node"))
        return 0

    def _nr_nodes(self) -> int:
        return max(1, len(list(self._sys.glob("devices/system/node/node[0-9]*"))))

    def _memory_mib(self, key: str = "MemTotal") -> int:
        found = re.search(rf"^{key}:\s+(\d+) kB", self._read(self._proc / "meminfo"), re.M)
        return int(found[1]) // 1024 if found else 0

    def _own_memory_mib(self) -> int:
        """Return what Xen counts as domain 0's; the kernel itself shows less of it as MemTotal."""
        current = self._read(self._sys / "devices/system/xen_memory/xen_memory0/info/current_kb")
        return int(current) // 1024 if current.isdecimal() else self._memory_mib()

    def _boot_time_s(self) -> float:
        fields = self._stat_line("btime")
        return float(fields[0]) if fields else time.time()

    def _stat_line(self, key: str) -> list[str]:
        for line in self._read(self._proc / "stat").splitlines():
            words = line.split()
            if words and words[0] == key:
                return words[1:]
        return []

    def _cpuinfo(self) -> dict[str, str]:
        """Return the first processor's lines."""
        first = self._read(self._proc / "cpuinfo").partition("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {key.strip(): value.strip() for key, _colon, value in pairs}

    def _xen_file(self, name: str) -> str:
        return self._read(self._sys / "hypervisor" / name)

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(errors="replace").strip()
        except OSError:
            return ""


def _domain_0_config(memory_mib: int, cpus: int) -> DomainConfig:
    any_cpu = [str(cpu) for cpu in range(cpus)]
    return DomainConfig.from_sxp(
        [
            "domain",
            ["uuid", DOMAIN_0_UUID],
            ["name", DOMAIN_0],
            ["memory", str(memory_mib)],
            ["vcpus", str(cpus)],
            ["cpus", [list(any_cpu) for _ in range(cpus)]],
            [
                "image",
                ["linux", ["kernel", ""], ["superpages", "0"], ["nomigrate", "0"],
                 ["tsc_mode", "0"]],
            ],
        ]
    )  # fmt: skip


def _number(text: str | None, default: int) -> int:
    """Return the integer part of what `text` says."""
    found = re.match(r"\d{1,9}", text or "")
    return int(found[0]) if found else default
