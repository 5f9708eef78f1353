"""The commands that change a domain: save, restore, pause, shutdown, start, memory, core dumps."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from xendpy.cli.domains import child_value
from xendpy.cli.options import CommandFailed, Invocation, UsageError
from xendpy.cli.rpc import ERROR_INTERNAL
from xendpy.errors import RpcError

POLL_S = 1.0  # how often `-w` asks, as xm does
REBOOT_GAP_S = 30.0  # xl ends a guest before it builds it anew: meanwhile nobody knows it
UNITS = {"g": 1 << 30, "m": 1 << 20, "k": 1 << 10}


def save(xm: Invocation) -> None:
    """Save a domain to a file of this host."""
    if len(xm.params) != 2:
        raise UsageError("Wrong number of parameters")
    domain, path = xm.params[0], os.path.abspath(xm.params[1])
    if not os.access(os.path.dirname(path), os.W_OK):
        raise CommandFailed(f"xm save: Unable to create file {path}")
    xm.call("xend.domain.save", domain, path, xm.given("checkpoint"))


def restore(xm: Invocation) -> None:
    """Restore a domain from a file of this host."""
    if len(xm.params) != 1:
        raise UsageError("Wrong number of parameters")
    path = os.path.abspath(xm.params[0])
    if not os.access(path, os.R_OK):
        raise CommandFailed(f"xm restore: Unable to read file {path}")
    xm.call("xend.domain.restore", path, xm.given("paused"), *xm.forced())


def pause(xm: Invocation) -> None:
    """Pause a domain."""
    xm.call("xend.domain.pause", xm.params[0])
    _note_pause(xm, by_admin=True)


def unpause(xm: Invocation) -> None:
    """Unpause a domain."""
    xm.call("xend.domain.unpause", xm.params[0])
    _note_pause(xm, by_admin=False)


def _note_pause(xm: Invocation, *, by_admin: bool) -> None:
    """Leave a note for `xm domstate`."""
    try:
        xm.call("xend.domain.setpauseflag", xm.params[0], by_admin)
    except RpcError as error:
        if error.code != ERROR_INTERNAL:  # before 4.1 xend does not know the method
            raise


def start(xm: Invocation) -> int | None:
    """Start a managed domain."""
    if len(xm.params) != 1:
        raise UsageError("Expects 1 argument")
    domain = xm.params[0]
    xm.call("xend.domain.start", domain, xm.given("paused"), *xm.forced())
    if child_value(xm.call("xend.domain", domain), "domid") is None:
        raise RpcError(0, f"Domain '{domain}' is not started")
    if xm.given("console_autoconnect"):
        from xendpy.cli.console import attach

        return attach(xm, domain)
    return 0


def resume(xm: Invocation) -> None:
    """Resume a managed domain that was suspended."""
    if len(xm.params) != 1:
        raise UsageError("Wrong number of parameters")
    xm.call("xend.domain.resume", xm.params[0], xm.given("paused"), *xm.forced())


def trigger(xm: Invocation) -> None:
    """Send a trigger to a VCPU."""
    vcpu = int(xm.params[2]) if len(xm.params) > 2 else 0
    xm.call("xend.domain.send_trigger", xm.params[0], xm.params[1], vcpu)


def dump_core(xm: Invocation) -> None:
    """Write a core file; without a name the daemon chooses one."""
    if xm.given("crash") and xm.given("reset"):
        raise UsageError("You may not specify more than one '-CR' option")
    if len(xm.params) not in (1, 2):
        raise UsageError("Expects 1 or 2 argument(s)")
    path = os.path.abspath(xm.params[1]) if len(xm.params) == 2 else None
    print(f"Dumping core of domain: {xm.params[0]} ...")
    flags = (xm.given(name) for name in ("live", "crash", "reset"))
    xm.call("xend.domain.dump", xm.params[0], path, *flags)


def mem_set(xm: Invocation) -> None:
    """Set a domain's memory."""
    xm.call("xend.domain.setMemoryTarget", xm.params[0], mebibytes(xm.params[1]))


def mem_max(xm: Invocation) -> None:
    """Limit a domain's memory."""
    xm.call("xend.domain.maxmem_set", xm.params[0], mebibytes(xm.params[1]))


def mebibytes(text: str) -> int:
    """Return an amount of memory in MiB; a letter G, M or K may follow the number.

    Raises:
        ValueError: it is not a number.
    """
    unit = UNITS.get(text[-1:].lower())
    return int(text) if unit is None else int(text[:-1]) * unit >> 20


def reboot(xm: Invocation) -> int:
    """Reboot a domain, or all."""
    return _shut_down(xm, "reboot")


def shutdown(xm: Invocation) -> int:
    """Shut a domain down, or all."""
    if xm.given("halt") and xm.given("reboot"):
        raise UsageError("Can't specify halt and reboot", usage=False)
    reason = "halt" if xm.given("halt") else "reboot" if xm.given("reboot") else "poweroff"
    return _shut_down(xm, reason)


def _shut_down(xm: Invocation, reason: str) -> int:
    # The name each goes by now, under what the user called it.
    waiting: dict[str, str] = {}
    lives: dict[str, _Life] = {}
    code = 0
    for domain in _targets(xm):
        try:
            found = xm.call("xend.domain", domain)
            count = xm.call("xend.domain.getRestartCount", domain)
            xm.call("xend.domain.shutdown", domain, reason)
        except RpcError as error:
            if not xm.given("all"):
                raise
            print(f"Error: {error.reason}", file=sys.stderr)
            code = 1
        else:
            waiting[domain] = str(child_value(found, "name"))
            lives[domain] = _Life(waiting[domain], child_value(found, "domid"), count)
    if not xm.given("wait"):
        return code
    if reason == "reboot":
        gap_s = REBOOT_GAP_S
        _await(xm, waiting, lambda domain: lives[domain].is_over(xm), "rebooted", gap_s=gap_s)
    else:
        _await(xm, waiting, lambda domain: False, "terminated")
    return code


@dataclass(frozen=True, slots=True)
class _Life:
    """A domain between two of its restarts."""

    name: str
    domid: int
    restarts: int

    def is_over(self, xm: Invocation) -> bool:
        """Say whether another has begun: counted by xend, or told by the id where xl restarts."""
        try:
            if xm.call("xend.domain.getRestartCount", self.name) != self.restarts:
                return True
            domid = child_value(xm.call("xend.domain", self.name), "domid")
        except RpcError:  # between two lives: the list of the next round tells
            return False
        return domid is not None and domid != self.domid


def _targets(xm: Invocation) -> list[str]:
    if xm.given("all"):
        return [name for name in xm.call("xend.domains", False) if name != "Domain-0"]
    if not xm.params:
        raise UsageError("No domain parameter given", usage=False)
    if len(xm.params) > 1:
        raise UsageError("No multiple domain parameters allowed", usage=False)
    return [xm.params[0]]


def _await(
    xm: Invocation,
    waiting: dict[str, str],
    happened: Callable[[str], bool],
    word: str,
    *,
    gap_s: float = 0.0,
) -> None:
    """Report each domain as soon as it is gone for longer than `gap_s`, or as `happened` says."""
    gone_s: dict[str, float] = {}
    while waiting:
        alive = xm.call("xend.domains", False)
        now_s = time.monotonic()
        for domain, name in list(waiting.items()):
            if name in alive:
                gone_s.pop(domain, None)
                if not happened(domain):
                    continue
            elif now_s - gone_s.setdefault(domain, now_s) < gap_s:
                continue
            if name not in alive and word == "rebooted":
                print(f"Domain {domain} destroyed for failed in rebooting", flush=True)
            else:
                print(f"Domain {domain} {word}", flush=True)
            del waiting[domain]
        if waiting:
            time.sleep(POLL_S)
    print(f"All domains {word}")
