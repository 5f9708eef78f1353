"""`xm create` and `xm new`: a configuration file becomes a domain.

Spec: create.py of xm 4.4.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from xendpy.cli.createsxp import make_config
from xendpy.cli.createvars import BY_NAME, VARIABLES, Variable
from xendpy.cli.domains import child_value
from xendpy.cli.options import CommandFailed, Invocation
from xendpy.cli.rpc import ERROR_INVALID_DOMAIN
from xendpy.cli.xmconfig import MAX_BYTES, read_config
from xendpy.errors import RpcError

DEFAULT_FILE = "xmdefconfig"


def create(xm: Invocation) -> int:
    """Create a domain and let it run."""
    config = _prepared(xm)
    if config is None:
        return 0
    name = _build(xm, config)
    if xm.given("console_autoconnect"):
        from xendpy.cli.console import attach

        return attach(xm, name)
    return 0


def new(xm: Invocation) -> int:
    """Enter a domain into those that xend manages."""
    config = _prepared(xm)
    if config is not None:
        xm.call("xend.domain.new", config)
    return 0


def _prepared(xm: Invocation) -> list[Any] | None:
    """Return the s-expression to send, or None if printing it was all that was asked."""
    if xm.given("help_config"):
        print(variables_text(), end="")
        return None
    config = _from_sxp_file(xm) if xm.given("config") else _from_assignments(xm)
    if not xm.given("dryrun"):
        return config
    from xendpy.sxp import pretty

    print(pretty(_printable(config)), end="")
    return None


def _build(xm: Invocation, config: list[Any]) -> str:
    """Create, wait for devices, unpause; what fails half-way is destroyed again."""
    try:
        made = xm.call("xend.domain.create", config, *xm.forced())
    except RpcError as error:
        if error.code == ERROR_INVALID_DOMAIN:
            raise CommandFailed(f"the domain '{error.reason}' does not exist.") from error
        raise CommandFailed(error.reason) from error
    name = str(child_value(made, "name"))
    _or_destroy(xm, name, "xend.domain.waitForDevices", "")
    if not xm.given("paused"):
        _or_destroy(xm, name, "xend.domain.unpause", f"Failed to unpause domain {name}")
    if not xm.given("quiet"):
        print(f"Started domain {name} (id={child_value(made, 'domid')})", flush=True)
    return name


def _or_destroy(xm: Invocation, name: str, method: str, message: str) -> None:
    try:
        xm.call(method, name)
    except RpcError as error:
        xm.call("xend.domain.destroy", name)
        reason = f"{message}: {error.reason}" if message else error.reason
        raise CommandFailed(reason) from error


def _from_sxp_file(xm: Invocation) -> list[Any]:
    from xendpy.sxp import parse

    path = xm.options["config"]
    try:
        forms = parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CommandFailed(f"Cannot read file {path}: {reason}") from error
    if not forms or not isinstance(forms[0], list):
        raise CommandFailed(f"{path} holds no s-expression")
    return list(forms[0])


def _from_assignments(xm: Invocation) -> list[Any]:
    """Return the s-expression of the assignments in the file and on the command line."""
    wanted = xm.options.get("defconfig", DEFAULT_FILE)
    given: dict[str, Any] = {}
    script: dict[str, Any] = {}
    for word in xm.params:
        key, sign, text = word.partition("=")
        if not sign:
            wanted = word
        elif key in BY_NAME:
            _set(given, BY_NAME[key], text)
        else:
            # Not one of xm's: a variable for the file itself, as in `vmid=3`.
            script[key.strip()] = int(text) if text.strip().isdecimal() else text.strip()
    path = _find(xm, wanted)
    if not xm.given("quiet"):
        print(f'Using config file "{path}".', flush=True)
    try:
        with path.open("rb") as file:
            source = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CommandFailed(f'Cannot open config file "{path}": {error.strerror}') from error
    assigned = read_config(source, str(path), script | given)
    vals = {
        row.name: list(row.default) if row.kind == "list" else row.default for row in VARIABLES
    }
    vals |= {key: _checked(key, value) for key, value in assigned.items() if key in BY_NAME}
    vals |= given
    vals["name"] = vals["name"] or os.path.basename(wanted)
    return make_config(vals, console=xm.given("console_autoconnect"))


def _find(xm: Invocation, wanted: str) -> Path:
    """Return the file: as named, else in each directory of the path."""
    places = xm.options.get("path", f".:{xm.paths.config_dir}").split(":")
    for place in ("", *places):
        path = Path(os.path.join(place, wanted))
        # xm asked no more than whether it is there: /dev/null, or a pipe from the shell, will do.
        if path.exists() and not path.is_dir():
            return path
    raise CommandFailed(f'Cannot open config file "{wanted}"')


def _set(given: dict[str, Any], row: Variable, text: str) -> None:
    """Read a variable of the command line by its kind."""
    try:
        match row.kind:
            case "int":
                given[row.name] = int(text)
            case "flag":
                given[row.name] = {"yes": 1, "no": 0}[text]
            case "list":
                given.setdefault(row.name, []).append(text)
            case _:
                given[row.name] = text
    except (ValueError, KeyError) as error:
        raise CommandFailed(f"Invalid value: {text}") from error


def _checked(name: str, value: Any) -> Any:
    """Return a variable of the file in the form its kind asks for."""
    if BY_NAME[name].kind != "list":
        return value
    if isinstance(value, list | tuple):
        return list(value)
    raise CommandFailed(f"{name} must be a list, not {value!r}")


def _printable(value: Any) -> Any:
    """Return a value with pairs for the dicts: a s-expression has none."""
    if isinstance(value, dict):
        return [[key, _printable(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return value


def variables_text() -> str:
    """Return the list of variables that a configuration file may set."""
    lines = ["The config file defines the following variables:", ""]
    for row in VARIABLES:
        lines += [f"{row.name}={row.metavar}", f"    {row.help}."]
        if row.default not in (None, "", ()):
            lines[-1] += f" Default {row.default}."
    return "\n".join(lines) + "\n"
