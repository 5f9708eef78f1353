"""Completion for bash, written from the tables that also feed the parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module

from xendpy.cli import commands, xend
from xendpy.cli.options import Command, Option


def complete_xend() -> str:
    """Return bash completion for xend."""
    return _completion(
        "xend",
        words=xend.COMMANDS,
        options={"": [f"--{row.long}" for row in xend.OPTIONS]},
        domains=(),
        files=("check-config",),
    )


def complete_xm() -> str:
    """Return bash completion for xm."""
    rows = list(commands.COMMANDS.values())
    return _completion(
        "xm",
        words=[row.name for row in rows] + ["help"],
        options={
            "": _spellings(commands.GLOBAL_OPTIONS),
            **{row.name: found for row in rows if (found := _completed_options(row))},
        },
        domains=[row.name for row in rows if "domain" in row.args.lower()],
        files=[row.name for row in rows if "file" in row.args.lower()],
    )


def _spellings(options: Iterable[Option]) -> list[str]:
    return [f"--{row.long}" for row in options if not row.hidden]


def _completed_options(row: Command) -> list[str]:
    found = _spellings(row.options)
    if row.offline:
        found += [word for action in offline_actions(row) for word in action.option_strings]
    return found


def _completion(
    program: str,
    *,
    words: Iterable[str],
    options: Mapping[str, Sequence[str]],
    domains: Iterable[str],
    files: Iterable[str],
) -> str:
    """Return a completion script: subcommand, then its options, domains or files."""
    cases = "\n".join(
        f"        {name}) options='{' '.join(found)}' ;;"
        for name, found in options.items()
        if name
    )
    return f"""\
# bash completion for {program}; made from its own tables
_{program}_domains()
{{
    xm list 2>/dev/null | awk 'NR > 1 {{ print $1 }}'
}}

_{program}()
{{
    local cur=${{COMP_WORDS[COMP_CWORD]}} command='' options='' word index
    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${{COMP_WORDS[index]}}
        case $word in
        --root | --config) ((index++)) ;;
        -*) ;;
        *) command=$word && break ;;
        esac
    done
    COMPREPLY=()
    if [[ -z $command ]]; then
        options='{" ".join(words)} {" ".join(options.get("", ()))}'
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
        return
    fi
    case $command in
{cases or "        *) ;;"}
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
        return
    fi
    case " {" ".join(domains)} " in
    *" $command "*) COMPREPLY+=($(compgen -W "$(_{program}_domains)" -- "$cur")) ;;
    esac
    case " {" ".join(files)} " in
    *" $command "*) COMPREPLY+=($(compgen -f -- "$cur")) ;;
    esac
}}
complete -F _{program} {program}
"""


def offline_actions(row: Command) -> Sequence[argparse.Action]:
    """Return what an offline command's own parser knows."""
    parser = argparse.ArgumentParser(add_help=False)
    import_module(f"xendpy.cli.{row.offline}").add_arguments(parser)
    return parser._actions  # argparse has no public way to ask
