"""`xm console`: what a guest prints, as it prints it."""

from __future__ import annotations

import os
import select
import shutil
import sys

from xendpy.cli.domains import child_value
from xendpy.cli.options import Invocation, UsageError
from xendpy.cli.rpc import ERROR_GENERIC, ERROR_INVALID_DOMAIN
from xendpy.cli.terminal import ending_on_interrupt, keys_unseen
from xendpy.errors import RpcError

POLL_S = 0.25
DETACH = b"\x1d"  # Ctrl-], as with xenconsole and telnet
# Where Xen's own client lies, by distribution; it speaks to xenconsoled, not to the daemon.
XENCONSOLE_PATH = "/usr/lib/xen/bin:/usr/lib64/xen/bin:/usr/libexec/xen/bin:/usr/sbin:/usr/bin"


def console(xm: Invocation) -> int:
    """Attach to a running domain's console until Ctrl-] or its end."""
    if len(xm.params) != 1:
        raise UsageError("No domain given")
    domain = xm.params[0]
    try:
        if child_value(xm.call("xend.domain", domain), "domid") is None:
            raise RpcError(0, f"Domain '{domain}' is not started")
    except RpcError:
        if xm.given("quiet"):
            return 1
        raise
    return attach(xm, domain)


def attach(xm: Invocation, domain: str) -> int:
    """Print a domain's console until Ctrl-], end of input, or the domain's end."""
    try:
        seen = str(xm.call("xendpy.console", domain))
    except RpcError as error:
        if error.code != ERROR_GENERIC or not (client := _xenconsole()):
            raise
        domid = child_value(xm.call("xend.domain", domain), "domid")
        sys.stdout.flush()
        os.execv(client, [client, str(domid)])
    _print(seen)
    with ending_on_interrupt(), keys_unseen(sys.stdin.fileno()) as fd:
        while not _detached(fd):
            try:
                text = str(xm.call("xendpy.console", domain))
            except RpcError as error:
                if error.code == ERROR_INVALID_DOMAIN:  # it has ended: so has its console
                    return 0
                raise
            _print(added(seen, text))
            seen = text
    return 0


def _xenconsole() -> str | None:
    return shutil.which("xenconsole", path=XENCONSOLE_PATH)


def added(before: str, now: str) -> str:
    """Return what came since `before`; the daemon may have dropped the oldest part meanwhile."""
    if now.startswith(before):
        return now[len(before) :]
    for length in range(min(len(before), len(now)), 0, -1):
        if before.endswith(now[:length]):
            return now[length:]
    return now


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _detached(fd: int) -> bool:
    """Wait a moment; say whether the user has had enough."""
    if not select.select([fd], [], [], POLL_S)[0]:
        return False
    keys = os.read(fd, 1024)
    return not keys or DETACH in keys
