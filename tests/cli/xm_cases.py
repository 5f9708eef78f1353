"""What each command of xm is told by a daemon, and what it then prints.

Texts and columns are typed from what xm 4.4 printed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.cli.fake_xend import fault

DOMAIN_0 = [
    "domain",
    ["domid", 0],
    ["cpu_weight", 256],
    ["pool_name", "Pool-0"],
    ["vcpus", 2],
    ["name", "Domain-0"],
    ["memory", 4096],
    ["cpu_time", 1.0],
    ["online_vcpus", 2],
    ["state", "r-----"],
]
LEGACY_PV = [
    "domain",
    ["domid", 1],
    ["pool_name", "Pool-0"],
    ["vcpus", 2],
    ["uuid", "c90942d0-5d22-262d-5f69-d7b6b960b0f1"],
    ["name", "legacy-pv"],
    ["memory", 64],
    ["start_time", 0.0],
    ["cpu_time", 1.000000001],
    ["state", "-b----"],
    ["security_label", "ACM:home:blue"],
    ["image", ["linux", ["kernel", "/boot/vmlinuz"], ["args", "root=/dev/xvda1 ro console=hvc0"]]],
]
SPARE = ["domain", ["name", "spare"], ["memory", 512], ["vcpus", 1]]
ALL = [DOMAIN_0, LEGACY_PV, SPARE]

HEADER = "Name                                        ID   Mem VCPUs      State   Time(s)\n"
ROW_0 = "Domain-0                                     0  4096     2     r-----      1.0\n"
ROW_1 = "legacy-pv                                    1    64     2     -b----      1.0\n"
ROW_SPARE = "spare                                            512     1                 0.0\n"

NODE = [["system", "Linux"], ["host", "h7"], ["nr_cpus", 2], ["xen_scheduler", "credit"], ["odd"]]
VIF = [
    "0",
    [
        ["backend-id", "0"],
        ["handle", "0"],
        ["state", "1"],
        ["backend", "/local/domain/0/backend/vif/1/0"],
        ["mac", "00:16:3e:11:22:33"],
    ],
]
VBD = [
    "51712",
    [
        ["state", "1"],
        ["virtual-device", "51712"],
        ["backend", "/local/domain/0/backend/vbd/1/51712"],
        ["backend-id", "0"],
    ],
]


def vcpu(number: int, **values: Any) -> list[Any]:
    defaults: dict[str, Any] = {
        "online": 1,
        "blocked": 0,
        "running": 0,
        "cpu_time": 12.34,
        "cpu": 0,
    }
    defaults |= {"cpumap": [0, 1]}
    pairs = [[name, value] for name, value in (defaults | values).items()]
    return ["vcpu", ["number", number], *pairs]


VCPUS = [
    "domain",
    ["domid", 1],
    ["name", "legacy-pv"],
    ["vcpu_count", 3],
    vcpu(0, running=1),
    vcpu(1, blocked=1, cpu=1, cpumap=[1]),
    vcpu(2, online=0),
]


def found(*domains: list[Any]) -> Callable[..., Any]:
    """Answer `xend.domain` by name or id, as xend does."""

    def answer(name: str | int, full: int = 0) -> list[Any]:
        for sxp in domains:
            values = {str(child[1]) for child in sxp[1:] if child[0] in ("name", "domid")}
            if str(name) in values:
                return sxp
        raise fault(3, str(name))

    return answer


@dataclass(frozen=True, kw_only=True)
class Case:
    id: str
    argv: str
    replies: Mapping[str, Any] = field(default_factory=dict)
    out: str = ""
    err: str = ""
    code: int = 0
    calls: tuple[tuple[Any, ...], ...] | None = None
    usage: str = ""  # the command whose usage follows on stdout


def calls(*expected: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    return expected


CASES = [
    Case(
        id="list",
        argv="list",
        replies={"xend.domains_with_state": ALL},
        out=HEADER + ROW_0 + ROW_1 + ROW_SPARE,
        calls=calls(("xend.domains_with_state", True, "all", 0)),
    ),
    Case(
        id="list-prefix",
        argv="li",
        replies={"xend.domains_with_state": []},
        out=HEADER,
    ),
    Case(
        id="list-one",
        argv="list legacy-pv",
        replies={"xend.domain": found(*ALL)},
        out=HEADER + ROW_1,
        calls=calls(("xend.domain", "legacy-pv", 0)),
    ),
    Case(
        id="list-state",
        argv="list --state=paused",
        replies={"xend.domains_with_state": []},
        out=HEADER,
        calls=calls(("xend.domains_with_state", True, "paused", 0)),
    ),
    Case(
        id="list-pool",
        argv="list --pool=Pool-0",
        replies={"xend.domains_with_state": ALL},
        out=HEADER + ROW_0 + ROW_1,
    ),
    Case(
        id="list-label",
        argv="list --label",
        replies={"xend.domains_with_state": [LEGACY_PV, DOMAIN_0]},
        out=HEADER[:-1]
        + " Label     \n"
        + ROW_0[:-1]
        + "           \n"
        + ROW_1[:-1]
        + "       blue\n",
    ),
    Case(
        id="list-state-and-name",
        argv="list --state=paused legacy-pv",
        err="Error: You may specify either a state or a particular VM, but not both\n",
        code=1,
        usage="list",
    ),
    Case(
        id="list-long",
        argv="list -l legacy-pv",
        replies={"xend.domain": found(*ALL)},
        out=(
            "(domain\n"
            "    (domid 1)\n"
            "    (pool_name Pool-0)\n"
            "    (vcpus 2)\n"
            "    (uuid c90942d0-5d22-262d-5f69-d7b6b960b0f1)\n"
            "    (name legacy-pv)\n"
            "    (memory 64)\n"
            "    (start_time 0.0)\n"
            "    (cpu_time 1.000000001)\n"
            "    (state -b----)\n"
            "    (security_label ACM:home:blue)\n"
            "    (image\n"
            "        (linux (kernel /boot/vmlinuz) (args 'root=/dev/xvda1 ro console=hvc0'))\n"
            "    )\n"
            ")\n"
        ),
        calls=calls(("xend.domain", "legacy-pv", 1)),
    ),
    Case(
        id="list-unknown-domain",
        argv="list nobody",
        replies={"xend.domain": found(*ALL)},
        err="Error: Domain 'nobody' does not exist.\n",
        code=3,
    ),
    Case(
        id="bad-option",
        argv="list -z",
        err="Error: option -z not recognized\n",
        code=1,
        usage="list",
    ),
    Case(
        id="uptime-managed",
        argv="uptime spare",
        replies={"xend.domain": found(*ALL)},
        out="Name                                ID Uptime \n"
        "spare                                   0:00:00\n",
    ),
    Case(
        id="domid",
        argv="domid legacy-pv",
        replies={"xend.domain": found(*ALL)},
        out="1\n",
        calls=calls(("xend.domain", "legacy-pv")),
    ),
    Case(
        id="domname",
        argv="domname 1",
        replies={"xend.domain": found(*ALL)},
        out="legacy-pv\n",
        calls=calls(("xend.domain", "1")),
    ),
    Case(
        id="domid-count",
        argv="domid",
        err="Error: 'xm domid' requires 1 argument.\n\n",
        code=1,
        usage="domid",
    ),
    Case(
        id="rename-count",
        argv="rename a",
        err="Error: 'xm rename' requires 2 arguments.\n\n",
        code=1,
        usage="rename",
    ),
    Case(
        id="save-count",
        argv="save a",
        err="Error: 'xm save' requires between 2 and 3 arguments.\n\n",
        code=1,
        usage="save",
    ),
    Case(
        id="domstate-idle",
        argv="domstate legacy-pv",
        replies={"xend.domain": found(*ALL)},
        out="idle\n",
    ),
    Case(
        id="domstate-off",
        argv="domstate spare",
        replies={"xend.domain": found(*ALL)},
        out="shutoff\n",
    ),
    Case(
        id="domstate-paused",
        argv="domstate p",
        replies={
            "xend.domain": ["domain", ["state", "--p---"]],
            "xend.domain.getpauseflag": True,
        },
        out="paused by admin\n",
    ),
    Case(
        id="vcpu-list",
        argv="vcpu-list legacy-pv",
        replies={"xend.domain.getVCPUInfo": VCPUS, "xend.node.info": NODE},
        out=(
            "Name                                ID  VCPU   CPU State   Time(s) CPU Affinity\n"
            "legacy-pv                            1     0     0   r--      12.3 any cpu\n"
            "legacy-pv                            1     1     1   -b-      12.3 1\n"
            "legacy-pv                            1     2     -   --p      12.3 any cpu\n"
        ),
    ),
    Case(
        id="vcpu-set",
        argv="vcpu-set legacy-pv 2",
        replies={"xend.domain.setVCpuCount": None},
        calls=calls(("xend.domain.setVCpuCount", "legacy-pv", 2)),
    ),
    Case(
        id="vcpu-set-no-number",
        argv="vcpu-set legacy-pv two",
        err="Error: Invalid argument.\n",
        code=1,
        usage="vcpu-set",
    ),
    Case(
        id="vcpu-pin",
        argv="vcpu-pin legacy-pv 0 0-3,^1",
        replies={"xend.domain.pincpu": None},
        calls=calls(("xend.domain.pincpu", "legacy-pv", "0", "0,2,3")),
    ),
    Case(
        id="sched-credit",
        argv="sched-credit -d legacy-pv",
        replies={
            "xend.node.info": NODE,
            "xend.domains_with_state": ALL,
            "xend.domain.sched_credit_get": {"cap": 0, "weight": 256},
        },
        out="Name                                ID Weight  Cap\n"
        "legacy-pv                            1    256    0\n",
        calls=calls(
            ("xend.node.info",),
            ("xend.domains_with_state", True, "all", 0),
            ("xend.domain.sched_credit_get", "legacy-pv"),
        ),
    ),
    Case(
        id="sched-credit-set",
        argv="sched-credit -d legacy-pv -w 512",
        replies={"xend.node.info": NODE, "xend.domain.sched_credit_set": 0},
        calls=calls(
            ("xend.node.info",),
            ("xend.domain.sched_credit_set", "legacy-pv", 512, None),
        ),
    ),
    Case(
        id="sched-credit-other-scheduler",
        argv="sched-credit",
        replies={"xend.node.info": [["system", "x"], ["xen_scheduler", "sedf"]]},
        err="Error: Xen is running with the sedf scheduler\n",
        code=1,
    ),
    Case(
        id="network-list",
        argv="network-list legacy-pv",
        replies={"xend.domain.getDeviceSxprs": [VIF]},
        out=(
            "Idx BE     MAC Addr.     handle state evt-ch tx-/rx-ring-ref BE-path\n"
            "0   0  00:16:3e:11:22:33    0     1      -1    -1   /-1      "
            "/local/domain/0/backend/vif/1/0  \n"
        ),
        calls=calls(("xend.domain.getDeviceSxprs", "legacy-pv", "vif")),
    ),
    Case(
        id="block-list",
        argv="block-list legacy-pv",
        replies={"xend.domain.getDeviceSxprs": [VBD]},
        out=(
            "Vdev  BE handle state evt-ch ring-ref BE-path\n"
            "51712  0    0     1      -1     -1    /local/domain/0/backend/vbd/1/51712  \n"
        ),
        calls=calls(("xend.domain.getDeviceSxprs", "legacy-pv", "vbd")),
    ),
    Case(
        id="block-list-alias",
        argv="vbd-list legacy-pv",
        replies={"xend.domain.getDeviceSxprs": []},
        err="Command vbd-list is deprecated.  Please use xm block-list instead.\n",
    ),
    Case(
        id="network-list-no-domain",
        argv="network-list",
        out="No domain parameter given\n",
        code=1,
        usage="network-list",
    ),
    Case(
        id="info",
        argv="info",
        replies={"xend.node.info": NODE},
        out=(
            "host                   : h7\n"
            "nr_cpus                : 2\n"
            "xen_scheduler          : credit\n"
            "odd                    : (none)\n"
        ),
        calls=calls(("xend.node.info", 0)),
    ),
    Case(
        id="dmesg",
        argv="dmesg",
        replies={"xend.node.dmesg.info": "(XEN) stub console ring\\n"},
        out="(XEN) stub console ring\n",
    ),
    Case(
        id="dmesg-clear",
        argv="dmesg -c",
        replies={"xend.node.dmesg.clear": ""},
        calls=calls(("xend.node.dmesg.clear",)),
    ),
    Case(
        id="log",
        argv="log",
        replies={"xend.node.log": "a {\\047x\\047: 1}\\nb \\xc3\\xa9\\\\\\n"},
        out="a {'x': 1}\nb é\\\n\n",
    ),
    Case(
        id="destroy",
        argv="destroy legacy-pv",
        replies={"xend.domain.destroy": fault(3, "legacy-pv")},
        err="Error: Domain 'legacy-pv' does not exist.\n",
        code=3,
        calls=calls(("xend.domain.destroy", "legacy-pv")),
    ),
    Case(
        id="fault-shows-usage",
        argv="destroy Domain-0",
        replies={"xend.domain.destroy": fault(2, "Cannot destroy privileged domain 0")},
        err="Error: Cannot destroy privileged domain 0\n",
        code=1,
        usage="destroy",
    ),
    Case(
        id="delete",
        argv="delete spare",
        replies={"xend.domain.delete": None},
        calls=calls(("xend.domain.delete", "spare")),
    ),
    Case(
        id="rename",
        argv="rename a b",
        replies={"xend.domain.setName": None},
        calls=calls(("xend.domain.setName", "a", "b")),
    ),
    Case(
        id="suspend",
        argv="suspend a",
        replies={"xend.domain.suspend": None},
        calls=calls(("xend.domain.suspend", "a")),
    ),
    Case(
        id="resume-paused",
        argv="resume -p a",
        replies={"xend.domain.resume": None},
        calls=calls(("xend.domain.resume", "a", True)),
    ),
    Case(
        id="sysrq",
        argv="sysrq a s",
        replies={"xend.domain.send_sysrq": None},
        calls=calls(("xend.domain.send_sysrq", "a", "s")),
    ),
    Case(
        id="trigger",
        argv="trigger a nmi 1",
        replies={"xend.domain.send_trigger": None},
        calls=calls(("xend.domain.send_trigger", "a", "nmi", 1)),
    ),
    Case(
        id="mem-set",
        argv="mem-set legacy-pv 48",
        replies={"xend.domain.setMemoryTarget": None},
        calls=calls(("xend.domain.setMemoryTarget", "legacy-pv", 48)),
    ),
    Case(
        id="mem-set-unit",
        argv="balloon legacy-pv 2g",
        replies={"xend.domain.setMemoryTarget": None},
        err="Command balloon is deprecated.  Please use xm mem-set instead.\n",
        calls=calls(("xend.domain.setMemoryTarget", "legacy-pv", 2048)),
    ),
    Case(
        id="mem-max",
        argv="mem-max legacy-pv 65536k",
        replies={"xend.domain.maxmem_set": None},
        calls=calls(("xend.domain.maxmem_set", "legacy-pv", 64)),
    ),
    Case(
        id="pause",
        argv="pause legacy-pv",
        replies={"xend.domain.pause": None, "xend.domain.setpauseflag": None},
        calls=calls(
            ("xend.domain.pause", "legacy-pv"),
            ("xend.domain.setpauseflag", "legacy-pv", True),
        ),
    ),
    Case(
        id="unpause-of-xend-3",
        argv="unpause legacy-pv",
        replies={"xend.domain.unpause": None},
        calls=calls(
            ("xend.domain.unpause", "legacy-pv"),
            ("xend.domain.setpauseflag", "legacy-pv", False),
        ),
    ),
    Case(
        id="start",
        argv="start legacy-pv",
        replies={"xend.domain.start": None, "xend.domain": found(*ALL)},
        calls=calls(("xend.domain.start", "legacy-pv", False), ("xend.domain", "legacy-pv")),
    ),
    Case(
        id="start-did-not",
        argv="start spare",
        replies={"xend.domain.start": None, "xend.domain": found(*ALL)},
        err="Error: Domain 'spare' is not started\n",
        code=1,
        usage="start",
    ),
    Case(
        id="dump-core",
        argv="dump-core -L legacy-pv /tmp/core",
        replies={"xend.domain.dump": None},
        out="Dumping core of domain: legacy-pv ...\n",
        calls=calls(("xend.domain.dump", "legacy-pv", "/tmp/core", True, False, False)),
    ),
    Case(
        id="dump-core-two-fates",
        argv="dump-core -CR legacy-pv",
        err="Error: You may not specify more than one '-CR' option\n",
        code=1,
        usage="dump-core",
    ),
    Case(
        id="shutdown",
        argv="shutdown legacy-pv",
        replies={
            "xend.domain": found(*ALL),
            "xend.domain.getRestartCount": 0,
            "xend.domain.shutdown": None,
        },
        calls=calls(
            ("xend.domain", "legacy-pv"),
            ("xend.domain.getRestartCount", "legacy-pv"),
            ("xend.domain.shutdown", "legacy-pv", "poweroff"),
        ),
    ),
    Case(
        id="reboot",
        argv="reboot legacy-pv",
        replies={
            "xend.domain": found(*ALL),
            "xend.domain.getRestartCount": 0,
            "xend.domain.shutdown": None,
        },
        calls=calls(
            ("xend.domain", "legacy-pv"),
            ("xend.domain.getRestartCount", "legacy-pv"),
            ("xend.domain.shutdown", "legacy-pv", "reboot"),
        ),
    ),
    Case(
        id="shutdown-wait",
        argv="shutdown -w 1",
        replies={
            "xend.domain": found(*ALL),
            "xend.domain.getRestartCount": 0,
            "xend.domain.shutdown": None,
            "xend.domains": ["Domain-0"],
        },
        out="Domain 1 terminated\nAll domains terminated\n",
    ),
    Case(
        id="shutdown-all",
        argv="shutdown -aw",
        replies={
            "xend.domain": found(*ALL),
            "xend.domain.getRestartCount": 0,
            "xend.domain.shutdown": None,
            "xend.domains": ["Domain-0"],
        },
        out="All domains terminated\n",
    ),
    Case(
        id="shutdown-halt-and-reboot",
        argv="shutdown -H -R legacy-pv",
        err="Error: Can't specify halt and reboot\n",
        code=1,
    ),
    Case(
        id="migrate",
        argv="migrate --live -p 18099 legacy-pv 127.0.0.1",
        replies={"xend.domain.migrate": None},
        calls=None,  # see test_migrate.py
    ),
    Case(
        id="migrate-all-options",
        argv="migrate web1 host-b -s -c -n=1 -p=8003",
        replies={"xend.domain.migrate": None},
        calls=None,
    ),
    Case(
        id="migrate-count",
        argv="migrate web1",
        err="Error: Invalid number of arguments\n",
        code=1,
        usage="migrate",
    ),
    Case(
        id="migrate-refused",
        argv="migrate web1 host-b",
        replies={"xend.domain.migrate": fault(2, "can't connect: Connection refused")},
        err="Error: can't connect: Connection refused\n",
        code=1,
        usage="migrate",
    ),
    Case(
        id="migrations",
        argv="migrations",
        replies={
            "xendpy.handovers": lambda *_: [],
            "xendpy.partials": [],
            "xendpy.migrations": [
                {
                    "id": "1f",
                    "direction": "in",
                    "domain": "web1",
                    "peer": "10.0.0.4",
                    "state": "failed",
                    "iteration": 3,
                    "pages": "262144",
                    "rate": "104857600",
                    "elapsed": 12.34,
                    "reason": "the stream ends after 3 of 8 bytes",
                }
            ],
        },
        out=(
            "ID       Way Name                     Peer                   "
            "State         Round      Pages     MiB/s  Time(s)\n"
            "1f       in  web1                     10.0.0.4               "
            "failed            4     262144     100.0     12.3\n"
            "    the stream ends after 3 of 8 bytes\n"
        ),
    ),
    Case(
        id="restore-unreadable",
        argv="restore /nowhere/saved",
        err="Error: xm restore: Unable to read file /nowhere/saved\n",
        code=1,
    ),
    Case(
        id="save-unwritable",
        argv="save legacy-pv /nowhere/saved",
        err="Error: xm save: Unable to create file /nowhere/saved\n",
        code=1,
    ),
    Case(
        id="inspect-nothing",
        argv="inspect",
        err="Error: the following arguments are required: FILE\n",
        code=1,
        usage="inspect",
    ),
    Case(
        id="extract-nothing",
        argv="extract",
        err="Error: the following arguments are required: FILE, OUT\n",
        code=1,
        usage="extract",
    ),
    Case(
        id="reset-unsupported",
        argv="reset legacy-pv",
        replies={"xend.domain.reset": fault(2, "the store driver cannot reset a guest")},
        err="Error: the store driver cannot reset a guest\n",
        code=1,
        usage="reset",
    ),
    Case(
        id="debug-keys",
        argv="debug-keys q",
        replies={"xend.node.send_debug_keys": None},
        calls=calls(("xend.node.send_debug_keys", "q")),
    ),
    Case(
        id="crashed-server",
        argv="list",
        replies={"raw": b"HTTP/1.1 500 Internal Error\r\nContent-Length: 0\r\n\r\n"},
        err="Xend has probably crashed!  ProtocolError(500, Internal Error).\n",
        code=1,
    ),
    Case(
        id="no-http",
        argv="list",
        replies={"raw": b"(err)\r\n"},
        err="Xend has probably crashed!  Invalid or missing HTTP status code.\n",
        code=1,
    ),
]
