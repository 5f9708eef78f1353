"""Man pages and shell completion, written from the tables that also feed the parsers.

    python3 -m xendpy.cli.docs DIR

writes DIR/man/man8/xend.8, DIR/man/man1/xm.1, DIR/man/man5/xend-config.sxp.5 and
DIR/bash-completion/completions/{xend,xm}: below a prefix's `share` they are where they belong.
Source: man-pages(7), bash-completion's own conventions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xendpy import __version__, config, sxp
from xendpy.cli import commands, xend
from xendpy.cli.completion import complete_xend, complete_xm, offline_actions
from xendpy.cli.options import Command

# xm's groups, in the order of its own manual page.
GROUPS: Mapping[str, str] = {
    "domain": "Domains",
    "device": "Devices",
    "host": "The host",
    "scheduler": "Schedulers",
    "xendpy": "Of xendpy",
}


def pages() -> dict[str, str]:
    """Return every file by its path below `share`."""
    return {
        "man/man8/xend.8": man_xend(),
        "man/man1/xm.1": man_xm(),
        "man/man5/xend-config.sxp.5": man_config(),
        "bash-completion/completions/xend": complete_xend(),
        "bash-completion/completions/xm": complete_xm(),
    }


def man_xend() -> str:
    """Return xend(8)."""
    return _page(
        "xend",
        8,
        "take, keep and send Xen guests over TCP 8002",
        (
            _section("Synopsis"),
            r"\fBxend\fR [\fIoptions\fR] {" + "|".join(map(_text, xend.COMMANDS)) + "}",
            _section("Description"),
            _text(
                "A daemon that is compatible with xend: it takes guests that an unmodified xend "
                "sends with `xm migrate`, and answers xm."
            ),
            _section("Commands"),
            *_definitions(xend.COMMANDS.items()),
            _section("Options"),
            *_definitions((row.spelling, row.help) for row in xend.OPTIONS),
            _section("Exit status"),
            *_definitions((str(code), text) for code, text in xend.EXIT_CODES),
            _section("Environment"),
            *_definitions(xend.ENVIRONMENT),
            _section("Files"),
            *_definitions(
                (
                    ("/etc/xen/xend-config.sxp", "Configuration"),
                    (
                        "/etc/xen/auto",
                        "Files, or links to files, of guests that are started once after each "
                        "boot of the host",
                    ),
                    ("/var/log/xen/xend.log", "Log, rotated at 1 MiB"),
                    ("/var/run/xend.pid", "Process id of the daemon"),
                    ("/var/run/xend/xmlrpc.sock", "Where xm is answered"),
                    ("/var/lib/xend", "Guests at rest, managed domains, journal"),
                )
            ),
            _see_also("xm(1)", "xend-config.sxp(5)"),
        ),
    )


def man_xm() -> str:
    """Return xm(1)."""
    body = [
        _section("Synopsis"),
        r"\fBxm\fR \fIsubcommand\fR [\fIargs\fR]",
        _section("Description"),
        _text(
            "The administrator's tool: speaks to xend over its socket. A subcommand may be "
            "shortened as long as it stays unique. A domain is named by its name or its id."
        ),
        _section("Options"),
        *_definitions((row.spelling, row.help) for row in commands.GLOBAL_OPTIONS),
    ]
    rows = list(commands.COMMANDS.values())
    groups = [*GROUPS, *dict.fromkeys(row.group for row in rows if row.group not in GROUPS)]
    for group in groups:
        members = [row for row in rows if row.group == group]
        if members:
            body.append(_section(GROUPS.get(group, group.capitalize())))
        for row in members:
            body += _subcommand(row)
    body += [
        _section("Exit status"),
        *_definitions((str(code), text) for code, text in commands.EXIT_CODES),
        _section("Environment"),
        *_definitions(commands.ENVIRONMENT),
        _see_also("xend(8)", "xend-config.sxp(5)"),
    ]
    return _page("xm", 1, "manage Xen guests", body)


def _subcommand(row: Command) -> Iterator[str]:
    yield ".TP"
    yield rf"\fB{_text(row.name)}\fR {_text(row.args)}".rstrip()
    yield _text(row.help)
    shown = list(_options(row))
    if shown:
        yield ".RS"
        yield from _definitions(shown)
        yield ".RE"


def _options(row: Command) -> Iterator[tuple[str, str]]:
    """Yield (spelling, help) of a subcommand's options, whoever parses them."""
    for option in row.options:
        if not option.hidden:
            yield option.spelling, option.help
    if row.offline:
        for action in offline_actions(row):
            if action.option_strings and action.dest != "help":
                value = f"={_metavar(action)}" if action.nargs != 0 else ""
                yield ", ".join(action.option_strings) + value, action.help or ""


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def man_config() -> str:
    """Return xend-config.sxp(5)."""
    rows = [
        (row.name, f"{row.doc} Default: {_shown(default)}") for _, row, default in config.options()
    ]
    own = [entry for entry in rows if entry[0].startswith("xendpy-")]
    return _page(
        "xend-config.sxp",
        5,
        "configuration of xend",
        (
            _section("Description"),
            _text(
                "A sequence of (option value) forms; # begins a comment. The first form of an "
                "option counts, an unknown option is passed over with a warning. A missing file "
                "means the defaults: no relocation server. `xend check-config` shows every "
                "option, its value and all warnings."
            ),
            _section("Options of xend"),
            *_definitions(entry for entry in rows if entry not in own),
            _section("Options of xendpy"),
            _text("A real xend does not look at them, so that one file suits both."),
            *_definitions(own),
            _section("Rows of xendpy"),
            _text("Each may be given more than once."),
            *_definitions((f"({form})", text) for form, text in config.REPEATED),
            _section("Example"),
            ".nf",
            _text("(xend-relocation-server yes)"),
            _text("(xend-relocation-port 8002)"),
            _text("(xend-relocation-address '')"),
            _text("(xend-relocation-hosts-allow '^localhost$ ^host1\\\\.example\\\\.com$')"),
            ".fi",
            _see_also("xend(8)", "xm(1)"),
        ),
    )


def _shown(default: Any) -> str:
    """Return a default as it would be written in the file."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, list):
        return sxp.show(default)
    if default is None:
        return "none"
    return sxp.show(str(default)) or "''"


def _page(name: str, section: int, purpose: str, body: Iterable[str]) -> str:
    title = f'.TH "{name.upper()}" {section} "" "xendpy {__version__}" "xendpy"'
    head = (title, _section("Name"), rf"{_text(name)} \- {_text(purpose)}")
    return "\n".join((*head, *body)) + "\n"


def _section(name: str) -> str:
    return f'.SH "{name.upper()}"'


def _definitions(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, text in rows:
        yield ".TP"
        yield rf"\fB{_text(term)}\fR"
        yield _text(text)


def _see_also(*names: str) -> str:
    shown = (rf"\fB{_text(name[:-3])}\fR{name[-3:]}" for name in names)
    return _section("See also") + "\n" + ", ".join(shown)


def _text(text: str) -> str:
    """Return text that roff takes as it is."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


def main() -> int:
    """Write every file below the directory that the command line names."""
    if len(sys.argv) != 2:
        print("usage: python3 -m xendpy.cli.docs DIR", file=sys.stderr)
        return 2
    for name, content in pages().items():
        path = Path(sys.argv[1]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        path.chmod(0o644)
    return 0


if __name__ == "__main__":
    sys.exit(main())
