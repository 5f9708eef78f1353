"""`xend`: start and stop the daemon.

Spec: misc/xend and xen/xend/server/SrvDaemon.py of xend 4.4 for the words, texts and exit codes.
Better than xend: `stop` waits until the daemon is gone, `reload` says what is wrong with the file.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final

from xendpy.cli import daemon, unit
from xendpy.cli.options import Option, UsageError, take_global
from xendpy.errors import ConfigError, XendError
from xendpy.paths import Paths

EX_CONFIG: Final = 78
NOT_RUNNING, UNKNOWN = 3, 4  # the LSB's words for a service's status

OPTIONS: Final = (
    Option(long="foreground", help="Stay in the foreground, as systemd wants it"),
    Option(long="config", metavar="FILE", help="Read FILE instead of xend-config.sxp"),
    Option(long="root", metavar="DIR", help="Put every path below DIR; needs no privileges"),
    Option(long="debug", help="Log at level DEBUG"),
    Option(long="force", help="stop, restart: also where that is refused while guests move"),
    Option(long="help", help="Print this help"),
    Option(long="version", help="Print the version"),
)

COMMANDS: Final = {
    "start": "Start the daemon; return when its listeners are open",
    "stop": "Stop the daemon and wait until it is gone; one that does not answer is killed",
    "restart": "Stop it, then start it",
    "reload": "Read the configuration file again; running migrations are not touched",
    "status": "Exit with 0 if it runs, 3 if not, 4 if it runs and does not answer",
    "check-config": "Check a configuration file, print every option, value and warning",
    "pki": "Make certificates for TLS: pki init, issue HOST [--address A], show, renew [HOST]",
    "trace_start": "Start with a log at level DEBUG",
}

ENVIRONMENT: Final = (
    ("XENDPY_ROOT", "directory below which all paths lie, as --root"),
    ("XEND_CONFIG", "configuration file to read, as --config"),
    ("XEND_DEBUG", "log at level DEBUG, as --debug"),
    ("XEND_DAEMONIZE", "0 means --foreground"),
)

EXIT_CODES: Final = (
    (0, "done; running already, for `start` in the background; running, for `status`"),
    (1, "it failed; the reason is on standard error"),
    (NOT_RUNNING, "not running (`status`)"),
    (UNKNOWN, "it runs and does not answer (`status`)"),
    (EX_CONFIG, "the configuration cannot be used (`start --foreground`, `check-config`)"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one xend command line (without the program's name); return the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        taken, rest = take_global(
            words,
            valued=("--root", "--config"),
            flags=("--foreground", "--debug", "--help", "-h", "--version"),
        )
    except UsageError as error:
        return _fail(str(error))
    if "--help" in taken or "-h" in taken:
        print(help_text(), end="")
        return 0
    if "--version" in taken:
        from xendpy import __version__

        print(f"xendpy {__version__}")
        return 0
    paths = Paths.choose(root=taken.get("--root"), config=taken.get("--config"))
    command, args = (rest[0], rest[1:]) if rest else ("", [])
    if command != "check-config" and not _may_run(paths):
        return 1
    if not command:
        print("usage: xend {start|stop|reload|restart}")
        return 1
    if "--debug" in taken or command == "trace_start":
        os.environ["XEND_DEBUG"] = "1"
    return _dispatch(command, args, paths, foreground=_foreground(taken))


def _foreground(taken: dict[str, str]) -> bool:
    return "--foreground" in taken or os.environ.get("XEND_DAEMONIZE", "1") in ("0", "no", "false")


def _dispatch(command: str, args: Sequence[str], paths: Paths, *, foreground: bool) -> int:
    if command == "check-config":
        return _check_config(args, paths)
    if command == "pki":
        from xendpy.cli import pki

        return pki.run(args, paths)
    force = command in ("stop", "restart") and list(args) == ["--force"]
    args = [] if force else args
    actions: dict[str, Callable[[], int]] = {
        "start": lambda: start(paths, foreground=foreground),
        "trace_start": lambda: start(paths, foreground=foreground),
        "stop": lambda: stop(paths, force=force),
        "restart": lambda: stop(paths, force=force) or start(paths, foreground=foreground),
        "reload": lambda: reload(paths),
        "status": lambda: status(paths),
    }
    action = actions.get(command)
    if action is None:
        print(f"not an option: {command}")
        return 1
    if args:
        return _fail(f"xend {command} takes no arguments: {' '.join(args)}")
    return action()


def _may_run(paths: Paths) -> bool:
    """Ask for root where the host's own paths are meant; below another root nobody needs it."""
    if os.geteuid() == 0 or str(paths.root) != "/":
        return True
    frame = "*" * 70
    print(frame, "*** Xend must be run as root.", frame, sep="\n", file=sys.stderr)
    return False


def start(paths: Paths, *, foreground: bool) -> int:
    """Start the daemon; running already is success, except for who wants to be it."""
    pid = daemon.running_pid(paths)
    if foreground and pid is not None:
        return _fail(f"a daemon runs already, pid {pid}: `xend stop` ends it")
    if pid is not None:
        return 0
    if foreground:
        return serve(paths, foreground=True, ready=lambda: None)
    if unit.is_in_charge(paths):
        return _start_unit(paths)
    return daemon.start_in_background(
        lambda ready: serve(paths, foreground=False, ready=ready),
        stderr_log=paths.log_dir / "xend-debug.log",
    )


def _start_unit(paths: Paths) -> int:
    """Have systemd start the daemon; what is wrong with its configuration is said here."""
    from xendpy.config_file import load

    try:
        config = load(paths.config_file).config
    except ConfigError as error:
        return _fail(str(error))
    if os.environ.get("XEND_DEBUG"):
        print("xend: systemd's unit is started, which --debug does not reach", file=sys.stderr)
    if unit.ask("start"):
        return _fail(f"the reason is in {config.logfile}, or in `journalctl -u {unit.NAME}`")
    return 0


def serve(paths: Paths, *, foreground: bool, ready: Callable[[], None]) -> int:
    """Be the daemon: run the service in this process until it ends; return the exit code."""
    from xendpy.control import service

    def listening() -> None:
        daemon.record_pid(paths)
        ready()

    daemon.set_command_name()
    try:
        return service.run(paths, foreground=foreground, ready=listening)
    except ConfigError as error:
        return _fail(str(error), code=EX_CONFIG if foreground else 1)
    except (XendError, OSError) as error:
        return _fail(str(error))
    finally:
        daemon.forget_pid(paths)


def stop(paths: Paths, *, force: bool) -> int:
    """Stop the daemon; not running is success. `force`: where the configuration refuses it too."""
    from xendpy.cli import stopping

    pid = daemon.running_pid(paths)
    if pid is None:
        return 0
    try:
        stopping.stop(paths, pid, force=force)
    except stopping.NotStopped as error:
        return _fail(str(error))
    return 0


def reload(paths: Paths) -> int:
    """Make the daemon read its file again; a file it could not use is reported instead."""
    from xendpy.config_file import load

    try:
        load(paths.config_file)
    except ConfigError as error:
        return _fail(f"not reloaded: {error}")
    pid = daemon.running_pid(paths)
    if pid is None:
        return 0
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        return _fail(f"cannot signal pid {pid}: {error.strerror}")
    return 0


def status(paths: Paths) -> int:
    """Say by the exit code alone whether the daemon runs; what is in doubt is mentioned."""
    pid = daemon.running_pid(paths)
    if pid is None:
        return NOT_RUNNING
    from xendpy.cli.migrations import in_doubt_line
    from xendpy.cli.rpc import Server, Silent
    from xendpy.cli.stopping import ANSWER_S

    server = Server(f"httpu://{paths.xmlrpc_socket}", timeout_s=ANSWER_S)
    try:
        doubt = in_doubt_line(server.call)
    except Silent as error:
        return _fail(f"pid {pid} runs and does not answer: {error.reason}", code=UNKNOWN)
    if doubt:
        print(doubt, file=sys.stderr)
    return 0


def _check_config(args: Sequence[str], paths: Paths) -> int:
    from xendpy.cli import check_config

    if len(args) > 1:
        return _fail("xend check-config takes one file")
    chosen = Paths.choose(root=str(paths.root), config=args[0]) if args else paths
    return check_config.run(chosen)


def help_text() -> str:
    """Return what `xend --help` prints."""
    commands = [f"  {name:<14} {text}" for name, text in COMMANDS.items()]
    options = [f"  {row.spelling:<14} {row.help}" for row in OPTIONS]
    codes = [f"  {code:<14} {text}" for code, text in EXIT_CODES]
    return "\n".join(
        [
            "usage: xend {start|stop|reload|restart|status|check-config|pki} [options]",
            "",
            "commands:",
            *commands,
            "",
            "options:",
            *options,
            "",
            "exit codes:",
            *codes,
            "",
            "environment:",
            *(f"  {name:<14} {text}" for name, text in ENVIRONMENT),
            "",
        ]
    )


def _fail(message: str, *, code: int = 1) -> int:
    print(f"xend: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
