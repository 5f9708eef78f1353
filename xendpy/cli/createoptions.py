"""The options of `xm create` and `xm new`, as data."""

from __future__ import annotations

from typing import Final

from xendpy.cli.options import Option

CREATE_OPTIONS: Final = (
    Option(short="h", long="help", help="Print this help."),
    Option(long="help_config", help="Print the variables that a configuration file may set."),
    Option(short="q", long="quiet", help="Print nothing but errors."),
    Option(
        long="path",
        metavar="PATH",
        help="Directories to search for the configuration file, separated by colons.",
    ),
    Option(
        short="f",
        long="defconfig",
        metavar="FILE",
        help="Read FILE: assignments in the syntax of Python, each setting a variable of the "
        "same name. Variables on the command line win over the file's.",
    ),
    Option(short="F", long="config", metavar="FILE", help="Read FILE: a s-expression."),
    Option(short="n", long="dryrun", help="Print the s-expression, and create nothing."),
    Option(short="p", long="paused", help="Leave the domain paused."),
    Option(short="c", long="console_autoconnect", help="Attach to its console."),
)
