"""`xm vcpu-list`, `vcpu-pin`, `vcpu-set`, `sched-credit`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xendpy.cli.domains import child_value, children, domain_row, fetch
from xendpy.cli.options import CommandFailed, Invocation, UsageError
from xendpy.errors import RpcError
from xendpy.guest.cpuset import cpu_set

MAX_CPUS = 64  # what `all` meant to xm


def vcpu_list(xm: Invocation) -> int | None:
    """Print every VCPU: where it runs, for how long it ran, where it may run."""
    names = xm.params or xm.call("xend.domains_with_state", False, "all", False)
    domains = [xm.call("xend.domain.getVCPUInfo", name) for name in names]
    nr_cpus = int(child_value(xm.call("xend.node.info"), "nr_cpus", 0))
    print(
        f"{'Name':<32} {'ID':>5} {'VCPU':>5} {'CPU':>5} {'State':>5} {'Time(s)':>9} CPU Affinity"
    )
    for sxp in domains:
        name = str(child_value(sxp, "name", "??"))
        domid = child_value(sxp, "domid")
        for vcpu in children(sxp, "vcpu"):
            cpu, state = _place(vcpu)
            print(
                f"{name:<32} {'' if domid is None else domid:>5} "
                f"{int(child_value(vcpu, 'number')):5d} {cpu:>5} {state:>5} "
                f" {float(child_value(vcpu, 'cpu_time')):8.1f} "
                f"{affinity(child_value(vcpu, 'cpumap', []), nr_cpus)}"
            )
    return 0


def _place(vcpu: list[Any]) -> tuple[str, str]:
    """Return the CPU and the state columns of one VCPU."""
    cpu = int(child_value(vcpu, "cpu", -1))
    if cpu < 0:
        return "", ""
    if not int(child_value(vcpu, "online", 0)):
        return "-", "--p"
    running = "r" if int(child_value(vcpu, "running", 0)) else "-"
    blocked = "b" if int(child_value(vcpu, "blocked", 0)) else "-"
    return str(cpu), f"{running}{blocked}-"


def affinity(cpumap: Iterable[Any], nr_cpus: int) -> str:
    """Return a set of CPUs as ranges: `0-3,6`, `any cpu`, `no cpus`."""
    cpus = sorted({int(cpu) for cpu in cpumap if int(cpu) < nr_cpus})
    if len(cpus) == nr_cpus:
        return "any cpu"
    if not cpus:
        return "no cpus"
    ranges: list[list[int]] = []
    for cpu in cpus:
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def vcpu_set(xm: Invocation) -> None:
    """Set how many VCPUs are active."""
    xm.call("xend.domain.setVCpuCount", xm.params[0], int(xm.params[1]))


def vcpu_pin(xm: Invocation) -> None:
    """Choose the CPUs a VCPU may use: `0-3,^1`, or `all`."""
    domain, vcpu, cpus = xm.params
    text = f"0-{MAX_CPUS - 1}" if cpus == "all" else cpus
    wanted = ",".join(str(cpu) for cpu in sorted(cpu_set(text)))
    xm.call("xend.domain.pincpu", domain, vcpu, wanted)


def sched_credit(xm: Invocation) -> None:
    """Print the credit scheduler's parameters, or set those of one domain."""
    scheduler = child_value(xm.call("xend.node.info"), "xen_scheduler") or "unknown"
    if scheduler != "credit":
        raise CommandFailed(f"Xen is running with the {scheduler} scheduler")
    domain = xm.options.get("domain")
    weight = int(xm.options["weight"]) if xm.given("weight") else None
    cap = int(xm.options["cap"]) if xm.given("cap") else None
    if weight is None and cap is None:
        _print_credit(xm, domain)
        return
    if domain is None:
        raise UsageError("No domain given.")
    answer = xm.call("xend.domain.sched_credit_set", domain, weight, cap)
    if answer not in (0, None):
        raise CommandFailed(str(answer))


def _print_credit(xm: Invocation, domain: str | None) -> None:
    rows = [domain_row(sxp) for sxp in fetch(xm, ())]
    if domain is not None:
        rows = [row for row in rows if domain in (row.name, row.domid)]
        if not rows:
            raise UsageError(f"Domain '{domain}' does not exist.")
    print(f"{'Name':<33} {'ID':>4} {'Weight':>6} {'Cap':>4}")
    for row in rows:
        try:
            credit = xm.call("xend.domain.sched_credit_get", row.name)
        except RpcError:  # a domain that does not run has none
            credit = {}
        weight, cap = int(credit.get("weight", -1)), int(credit.get("cap", -1))
        print(f"{row.name:<32} {row.domid:>5} {weight:6d} {cap:4d}")
