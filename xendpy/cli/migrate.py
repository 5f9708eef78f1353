"""`xm migrate`: ask the daemon to send a guest away, and watch.

A migration belongs to the daemon: it goes on when this command goes away. Any other xend is asked
in its own words, and waited for in silence.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from xendpy.cli.migrate_progress import View
from xendpy.cli.migrate_screen import Drawn, JsonLines, Lines, Screen, Silent
from xendpy.cli.options import CommandFailed, Invocation, UsageError
from xendpy.cli.rpc import ERROR_INTERNAL, BrokenAnswer, Unreachable
from xendpy.errors import RpcError

POLL_S: Final = 0.2
MOVED, STAYS, IN_DOUBT, CANCELLED = 0, 1, 4, 130
BY_LIMITS: Final = "cancelled by the limits"  # no convergence, and the plan said cancel

# Ours alone: xm's word for the option, the daemon's, and how the one becomes the other.
_LIMITS: Final = (
    ("max-downtime", "max_downtime_s", lambda text: float(text) / 1000),
    ("max-iterations", "max_iterations", int),
    ("on-no-convergence", "on_no_convergence", str),
    ("timeout", "timeout_s", float),
    ("bandwidth", "bandwidth", lambda text: int(float(text) * (1 << 20))),
    ("peer-release", "release", str),
    ("peer-tools", "tools", int),
    ("streams", "streams", int),
)
_CHOICES: Final = ("compress", "lossy")
_OURS: Final = (*(name for name, _, _ in _LIMITS), *_CHOICES, "progress", "json", "dry-run")


def migrate(xm: Invocation) -> int:
    """Migrate a domain; return 0 moved, 1 it stays, 4 in doubt or detached, 130 cancelled."""
    if len(xm.params) != 2:
        raise UsageError("Invalid number of arguments")
    order = (xm.params[0], _request(xm), _options(xm))
    try:
        if xm.given("dry-run"):
            from xendpy.cli.migrate_preflight import show

            return show(xm.call("xendpy.preflight", *order), json_wanted=xm.given("json"))
        migration_id = str(xm.call("xendpy.migrate", *order))
    except RpcError as error:
        if not lacks_method(error):
            raise
        return _migrate_by_xend(xm)
    return follow(xm, migration_id)


def lacks_method(error: RpcError) -> bool:
    """Say whether a fault means that the daemon is another xend, which has not heard of it."""
    return error.code == ERROR_INTERNAL and "is not supported" in error.reason


def _migrate_by_xend(xm: Invocation) -> int:
    """Ask as xm 4.4 does, and wait; silent on success."""
    ours = [f"--{name}" for name in _OURS if xm.given(name)]
    if ours:
        raise CommandFailed(f"this xend does not know {', '.join(ours)}")
    request = _request(xm)
    xm.call(
        "xend.domain.migrate",
        *xm.params,
        int(request["live"]),
        request["port"],
        request["node"],
        1 if request["tls"] else None,  # nil: what xend-relocation-ssl says
        int(request["change_home_server"]),
    )
    return MOVED


def _request(xm: Invocation) -> dict[str, Any]:
    return {
        "destination": xm.params[1],
        "live": xm.given("live"),
        "port": int(xm.options.get("port", 0)),
        "node": int(xm.options.get("node", -1)),
        "tls": True if xm.given("ssl") else None,
        "change_home_server": xm.given("change_home_server"),
    }


def _options(xm: Invocation) -> dict[str, Any]:
    chosen = {key: make(xm.options[name]) for name, key, make in _LIMITS if name in xm.options}
    return {**chosen, **{name: True for name in _CHOICES if xm.given(name)}}


class _Interrupts:
    """Counts Ctrl-C instead of dying of it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: object) -> None:
        self.count += 1


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    # A daemon that goes away must not end this command without a word.
    handlers: dict[int, Any] = {signal.SIGINT: interrupts, signal.SIGPIPE: signal.SIG_IGN}
    before = {number: signal.signal(number, how) for number, how in handlers.items()}
    try:
        yield interrupts
    finally:
        for number, how in before.items():
            signal.signal(number, how)


def follow(xm: Invocation, migration_id: str) -> int:
    """Watch a migration to its end, or until it can only be left; return the exit code."""
    screen = _screen(xm)
    try:
        with _interrupts() as interrupts:
            view = _watch(xm, migration_id, screen, interrupts)
        if view is not None:
            screen.end(view)
    except BrokenPipeError:  # whoever read our lines has gone: the migration goes on
        return IN_DOUBT
    except (Unreachable, BrokenAnswer) as error:
        raise CommandFailed(
            f"xend does not answer any more ({error.reason}); migration {migration_id[:8]} may"
            " go on without: see `xm migrations`",
            code=IN_DOUBT,
        ) from error
    finally:
        if isinstance(screen, Drawn):
            screen.close()
    return _verdict(view, xm, migration_id)


def _screen(xm: Invocation) -> Screen:
    if xm.given("json"):
        return JsonLines(sys.stdout)
    if xm.given("progress"):
        return Lines(sys.stdout)
    return Drawn(sys.stdout) if sys.stdout.isatty() else Silent()


def _watch(
    xm: Invocation, migration_id: str, screen: Screen, interrupts: _Interrupts
) -> View | None:
    """Return the last look at a migration that has ended, or None if it was left."""
    asked = False
    while True:
        view = View.of(xm.call("xendpy.migration", migration_id))
        screen.show(view, time.monotonic())
        if view.ended:
            return view
        if interrupts.count > 1:
            return None
        if interrupts.count and not asked:
            asked = True
            if not _cancel(xm, migration_id):
                return None
            screen.say("cancelling ...")
        time.sleep(POLL_S)


def _cancel(xm: Invocation, migration_id: str) -> bool:
    """Return whether the migration is cancelled, or has ended by itself meanwhile."""
    try:
        return bool(xm.call("xendpy.migration.cancel", migration_id))
    except RpcError as error:
        if isinstance(error, Unreachable | BrokenAnswer):
            raise
        return True  # it is not under way any more: the next look says how it ended


def _verdict(view: View | None, xm: Invocation, migration_id: str) -> int:
    name, host = xm.params
    short = migration_id[:8]
    if view is None:
        text = f"detached: {name} is being handed over to {host}; see `xm migrations show {short}`"
        print(text, file=sys.stderr)
        return IN_DOUBT
    if view.in_doubt:
        print(_doubt(view.handover, view.reason), file=sys.stderr)
        return IN_DOUBT
    if view.moved:
        return MOVED
    if view.state == "aborted" and not view.reason.startswith(BY_LIMITS):
        print(f"Migration {short} cancelled: {name} goes on here.", file=sys.stderr)
        return CANCELLED
    reason = view.reason.removeprefix(f"{BY_LIMITS}: ")
    print(f"Error: {reason}\n{name} goes on here.", file=sys.stderr)
    return STAYS


def _doubt(handover: Mapping[str, Any], reason: str) -> str:
    from xendpy.cli.migrations import advice

    return f"Error: {handover.get('reason') or reason}\n" + "\n".join(advice(handover))
