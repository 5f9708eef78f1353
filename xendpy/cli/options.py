"""What a command is: its name, arguments, options and help, as data.

The same rows feed the parser, `--help`, the man pages and the shell completion. Nothing slow is
imported: `xm` starts with this.
"""

from __future__ import annotations

import getopt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xendpy.errors import XendError

if TYPE_CHECKING:
    from xendpy.cli.rpc import Server
    from xendpy.paths import Paths


class UsageError(XendError):
    """The command line is wrong; `stdout` says that xm prints the reason there, not on stderr."""

    def __init__(self, reason: str, *, usage: bool = True, stdout: bool = False) -> None:
        super().__init__(reason)
        self.usage = usage
        self.stdout = stdout


class CommandFailed(XendError):
    """The command could not do its work; printed as `Error: …`, with exit code `code`."""

    def __init__(self, reason: str, *, code: int = 1) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option; `metavar` names its argument, an empty one means that it takes none."""

    long: str
    help: str
    short: str = ""
    metavar: str = ""
    hidden: bool = False

    @property
    def spelling(self) -> str:
        """Return the option as help shows it: `-d DOMAIN, --domain=DOMAIN`."""
        short = f"-{self.short} {self.metavar}".rstrip() if self.short else ""
        long = f"--{self.long}={self.metavar}" if self.metavar else f"--{self.long}"
        return f"{short}, {long}" if short else long

    @property
    def compact(self) -> str:
        """Return the option as `xm create` and `xm migrate` show it: `-p=portnum, --port=…`."""
        value = f"={self.metavar}" if self.metavar else ""
        short = f"-{self.short}{value}, " if self.short else ""
        return f"{short}--{self.long}{value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One subcommand of xm.

    `count` bounds the number of arguments, options included, before anything is parsed.
    `handler` is `module:function` in `xendpy.cli`; `rpc` is the one method to call with the
    arguments where that is all the command does; `offline` names a module with `add_arguments`
    and `run` of its own. `option_list` chooses the layout of `xm create`'s help. `own` commands
    were never xm's, and give way to xm's where a prefix fits both.
    """

    name: str
    args: str
    help: str
    group: str
    count: tuple[int, int] | None = None
    options: tuple[Option, ...] = ()
    handler: str = ""
    rpc: str = ""
    offline: str = ""
    option_list: bool = False
    own: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """A command with what the user gave it; `options` maps long names to their values."""

    command: Command
    params: tuple[str, ...]
    server: Server
    paths: Paths
    options: Mapping[str, str] = field(default_factory=dict)

    def call(self, method: str, *args: Any) -> Any:
        """Call the daemon; see `Server.call`."""
        return self.server.call(method, *args)

    def given(self, option: str) -> bool:
        """Say whether `option` (its long name) was on the command line."""
        return option in self.options

    def forced(self) -> tuple[bool | str, ...]:
        """Return the argument that --force adds: no other xend knows it, so nothing without."""
        if self.given("autostart"):
            return ("autostart",)
        return (True,) if self.given("force") else ()


Handler = Callable[[Invocation], "int | None"]


def check_count(command: Command, args: Sequence[str]) -> None:
    """Refuse a wrong number of arguments in xm's words."""
    if command.count is None:
        return
    low, high = command.count
    got = sum(1 for arg in args if arg != "--")
    if low <= got <= high:
        return
    if low == high:
        wanted = f"{low} argument" + ("" if low == 1 else "s")
        raise UsageError(f"'xm {command.name}' requires {wanted}.\n")
    raise UsageError(f"'xm {command.name}' requires between {low} and {high} arguments.\n")


def parse(command: Command, args: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the options by long name and the other arguments, in any order as getopt takes them.

    A command without options takes every word as an argument, as xm did.
    """
    check_count(command, args)
    if not command.options:
        return {}, tuple(args)
    names = {f"-{row.short}": row.long for row in command.options if row.short}
    short = "".join(
        row.short + (":" if row.metavar else "") for row in command.options if row.short
    )
    long = [row.long + ("=" if row.metavar else "") for row in command.options]
    try:
        found, params = getopt.gnu_getopt(list(args), short, long)
    except getopt.GetoptError as error:
        raise UsageError(str(error)) from error
    # xm also took "-p=8002", although getopt leaves the sign in the value.
    options = {names.get(key, key[2:]): value.removeprefix("=") for key, value in found}
    return options, tuple(params)


def take_global(
    argv: Sequence[str], *, valued: Sequence[str], flags: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Split off the options that may stand before or after the subcommand.

    `valued` take an argument (`--root DIR` or `--root=DIR`), `flags` none. What follows `--` is
    left alone.

    Raises:
        UsageError: a valued option is the last word.
    """
    taken: dict[str, str] = {}
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, sign, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
            break
        if word in flags:
            taken[word] = ""
        elif sign and name in valued:
            taken[name] = value
        elif word in valued:
            if not words:
                raise UsageError(f"option {word} requires argument")
            taken[word] = words.pop(0)
        else:
            rest.append(word)
    return taken, rest
