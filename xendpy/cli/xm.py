"""`xm`: the command of the administrator. Finds the command, runs it, reports what failed.

Spec: xen/xm/main.py of xm 4.4 for prefixes, help, error texts and exit codes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

from xendpy.cli.commands import ALIASES, COMMANDS, COMMON, HELP
from xendpy.cli.options import (
    Command,
    CommandFailed,
    Handler,
    Invocation,
    UsageError,
    parse,
    take_global,
)
from xendpy.cli.rpc import ERROR_INVALID_DOMAIN, BrokenAnswer, Server, Unreachable, server_uri
from xendpy.errors import RpcError, XendError
from xendpy.paths import Paths

if TYPE_CHECKING:
    import argparse

HEADING: Final = (
    "Usage: xm <subcommand> [args]\n\nControl, list, and manipulate Xen guest instances.\n"
)
FOOTER: Final = (
    "<Domain> can either be the Domain Name or Id.\n"
    "For more help on 'xm' see the xm(1) man page.\n"
    "For more help on 'xm create' see the xmdomain.cfg(5)  man page.\n"
)
NEEDS_ROOT: Final = "Most commands need root access. Please try again as root."
CRASHED: Final = "Xend has probably crashed!  "


def main(argv: Sequence[str] | None = None) -> int:
    """Run one xm command line (without the program's name); return the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None:
        _default_signals()
    try:
        taken, rest = take_global(words, valued=("--root",), flags=("--debug",))
    except UsageError as error:
        return _fail(str(error))
    if not rest:
        print(help_text(short=True), end="")
        return 1
    if rest[0] in ("help", "--help", "-h"):
        return _help(rest[1:])
    command = find_command(rest[0])
    if command is None:
        _fail(f"Subcommand {rest[0]} not found!")
        print(help_text(short=True), end="")
        return 1
    if "--help" in rest or "-h" in rest:
        print(usage_text(command), end="")
        return 0 if command.own else 1  # xm's own answer to --help was 1
    paths = Paths.choose(root=taken.get("--root"))
    server = Server(server_uri(paths, root_given="--root" in taken))
    try:
        return _run(command, rest[1:], server, paths)
    except Exception as error:
        if "--debug" in taken:
            raise
        return _report(error, command)


def _default_signals() -> None:
    """Die of Ctrl-C and of a closed pipe as any command does, without a traceback."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def find_command(name: str) -> Command | None:
    """Return the command of that name, alias, or unique prefix of at least two characters.

    Our own commands give way to xm's, so that a prefix means what it always meant.
    """
    if name in COMMANDS:
        return COMMANDS[name]
    if name in ALIASES:
        message = f"Command {name} is deprecated.  Please use xm {ALIASES[name]} instead."
        print(message, file=sys.stderr)
        return COMMANDS[ALIASES[name]]
    if len(name) < 2:
        return None
    fitting = [row for row in COMMANDS.values() if row.name.startswith(name)]
    fitting = [row for row in fitting if not row.own] or fitting
    return fitting[0] if len(fitting) == 1 else None


def _run(command: Command, args: Sequence[str], server: Server, paths: Paths) -> int:
    if command.offline:
        module = import_module(f"xendpy.cli.{command.offline}")
        return int(module.run(_offline_parser(command).parse_args(list(args))))
    options, params = parse(command, args)
    if command.rpc:
        server.call(command.rpc, *params)
        return 0
    module_name, _, function = command.handler.partition(":")
    handler = cast(Handler, getattr(import_module(f"xendpy.cli.{module_name}"), function))
    invocation = Invocation(
        command=command, params=params, server=server, paths=paths, options=options
    )
    return handler(invocation) or 0


def _offline_parser(command: Command) -> argparse.ArgumentParser:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]  # argparse exits 2
            raise UsageError(message)

    parser = Parser(prog=f"xm {command.name}", description=command.help)
    import_module(f"xendpy.cli.{command.offline}").add_arguments(parser)
    return parser


def _report(error: Exception, command: Command) -> int:
    """Say what went wrong, in xm's words where it has some; return the exit code."""
    match error:
        case UsageError():
            reason = str(error)
            if error.stdout:
                print(reason)
            else:
                _fail(reason)
            if error.usage:
                print(usage_text(command), end="")
            return 1
        case Unreachable():
            return _fail(_unreachable(error))
        case BrokenAnswer(code=-1):
            return _fail(f"{CRASHED}Invalid or missing HTTP status code.", prefix="")
        case BrokenAnswer():
            return _fail(f"{CRASHED}ProtocolError({error.code}, {error.reason}).", prefix="")
        case RpcError(code=code) if code == ERROR_INVALID_DOMAIN:
            _fail(f"Domain '{error.reason}' does not exist.")
            return ERROR_INVALID_DOMAIN
        case RpcError():
            _fail(error.reason)
            print(usage_text(command), end="")
            return 1
        case CommandFailed():
            _fail(str(error))
            return error.code
        case XendError():
            return _fail(str(error))
        case ValueError() | OverflowError():
            _fail("Invalid argument.")
            print(usage_text(command), end="")
            return 1
        case OSError():
            return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    print(f"Unexpected error: {type(error).__name__}: {error}", file=sys.stderr)
    print("\nRun it again with --debug for a traceback.", file=sys.stderr)
    return 1


def _unreachable(error: Unreachable) -> str:
    # A socket of one's own needs no privileges: then the true reason is what helps.
    private = error.uri.startswith("httpu://") and not error.uri.startswith("httpu:///var/run/")
    if os.geteuid() != 0 and not private:
        return NEEDS_ROOT
    return f"Unable to connect to xend: {error.reason}. Is xend running?"


def _fail(message: str, *, prefix: str = "Error: ") -> int:
    print(f"{prefix}{message}", file=sys.stderr)
    return 1


def _help(topic: Sequence[str]) -> int:
    if topic and (command := find_command(topic[0])) is not None:
        print(usage_text(command), end="")
        return 0
    print(help_text(short=False), end="")
    return 0


def help_text(*, short: bool) -> str:
    """Return the list of the common commands, or of all of them."""
    rows = (
        [COMMANDS.get(name, HELP) for name in COMMON.split()] if short else list(COMMANDS.values())
    )
    title = "Common 'xm' commands:" if short else "xm full list of subcommands:"
    lines = [HEADING, title, ""]
    for row in rows:
        first, *more = _wrapped(row.help, 50)
        lines += [f" {row.name:<20} {first:<50}", *(" " * 22 + line for line in more)]
    lines += ["", FOOTER]
    if short:
        lines.append("For a complete list of subcommands run 'xm help'.")
    return "\n".join(lines) + "\n"


def usage_text(command: Command) -> str:
    """Return the help of one command."""
    if command.offline:
        return _offline_parser(command).format_help()
    lines = [f"Usage: xm {command.name} {command.args}", "", command.help]
    options = [row for row in command.options if not row.hidden]
    if command.option_list:
        lines += ["", "Options:", ""]
        for row in options:
            lines += _option_lines(row.compact, row.help)
        lines.append("")
    elif options:
        for row in options:
            first, *more = _wrapped(row.help, 43)
            lines += [f"  {row.spelling:<30} {first:<43}", *(" " * 33 + line for line in more)]
        lines.append("")
    return "\n".join(lines) + "\n"


def _option_lines(key: str, text: str) -> list[str]:
    """Return one option of the list layout: key in 21 columns, description in 55."""
    lines = _wrapped(text, 55)
    if len(key) > 20:
        return [key, *(" " * 21 + line for line in lines)]
    return [f"{key:<21}{lines[0]}", *(" " * 21 + line for line in lines[1:])]


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


if __name__ == "__main__":
    sys.exit(main())
