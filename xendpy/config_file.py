"""Reads xend-config.sxp: the values with their lines, and what an operator should look at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xendpy import sxp
from xendpy.config import (
    PEER_OPTION,
    RELEASES,
    TOOL_BITS,
    MapKind,
    MapRow,
    PeerRow,
    XendConfig,
    options,
)
from xendpy.config_values import parse_port, split_patterns
from xendpy.errors import ConfigError, SxpError


@dataclass(frozen=True, slots=True)
class Warning:
    """Something in the file that an operator should look at; line 0 = the file as a whole."""

    line: int
    text: str

    def told(self, path: Path) -> str:
        """Return the warning as one line, with the place in the file `path`."""
        return f"{path}:{self.line}: {self.text}" if self.line else f"{path}: {self.text}"


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, the line each option came from (None = its default), and the warnings."""

    config: XendConfig
    path: Path
    origins: dict[str, int | None]
    warnings: tuple[Warning, ...]


def load(path: Path) -> LoadedConfig:
    """Read a configuration file; one that does not exist means all defaults, and a warning.

    Raises:
        ConfigError: the file cannot be read or parsed, or a value is impossible; with its line.
    """
    try:
        text = path.read_bytes().decode("latin-1")
    except FileNotFoundError:
        missing = Warning(0, "the file does not exist: all options have defaults")
        origins: dict[str, int | None] = {row.name: None for _, row, _ in options()}
        return LoadedConfig(XendConfig(), path, origins, (missing,))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=str(path)) from error
    return parse(text, path)


def parse(text: str, path: Path) -> LoadedConfig:
    """Return the configuration that `text`, the contents of `path`, holds; errors as `load`."""
    try:
        forms, oddities = sxp.parse_forms(text)
    except SxpError as error:
        reason = f"{error.reason} (column {error.column})"
        raise ConfigError(reason, path=str(path), line=error.line) from error
    warnings = [Warning(oddity.line, oddity.text) for oddity in oddities]
    reader = _Reader(path, warnings)
    for form in forms:
        reader.take(form)
    config = XendConfig(
        **reader.values, peers=tuple(reader.peers.values()), maps=tuple(reader.maps.values())
    )
    warnings += [*_advice(config, reader.origins), *_without_effect(config, reader.origins)]
    return LoadedConfig(
        config, path, reader.origins, tuple(sorted(warnings, key=lambda item: item.line))
    )


class _Reader:
    # Collects the forms of one file into values, origins and warnings.

    def __init__(self, path: Path, warnings: list[Warning]) -> None:
        self._path = path
        self._warnings = warnings
        self._rows = {row.name: (attribute, row) for attribute, row, _ in options()}
        self.values: dict[str, Any] = {}
        self.peers: dict[str, PeerRow] = {}
        self.maps: dict[tuple[str, str], MapRow] = {}
        self.origins: dict[str, int | None] = dict.fromkeys(self._rows)
        self._first: dict[str, int] = {}

    def take(self, form: sxp.Form) -> None:
        value = form.value
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            self._warn(form, f"{sxp.show(value)} is no (option value): ignored")
            return
        name = value[0]
        if name == PEER_OPTION:
            self._peer(form, value)
        elif name in MapKind.__members__.values():
            self._map(form, MapKind(name), value)
        elif name not in self._rows:
            self._warn(form, f"unknown option {name}: ignored")
        elif name in self._first:
            first = self._first[name]
            self._warn(form, f"{name} is given again: the first one, line {first}, counts")
        else:
            self._first[name] = form.line
            self._set(form, name, value)

    def _set(self, form: sxp.Form, name: str, value: sxp.SxpList) -> None:
        attribute, row = self._rows[name]
        if len(value) == 1:
            self._warn(form, f"{name} has no value: its default counts")
            return
        if len(value) > 2:
            rest = " ".join(sxp.show(item) for item in value[2:])
            self._warn(form, f"{name} takes one value; ignored: {rest}")
        try:
            self.values[attribute] = row.parse(value[1])
        except ValueError as error:
            raise self._error(form, name, str(error)) from error
        self.origins[name] = form.line

    def _peer(self, form: sxp.Form, value: sxp.SxpList) -> None:
        name = value[1] if len(value) > 1 else None
        address = sxp.child_value(value, "address", name)
        release = sxp.child_value(value, "release", RELEASES[-1])
        bits = sxp.child_value(value, "tools", TOOL_BITS[-1])
        if not isinstance(name, str) or not name or not isinstance(address, str):
            raise self._error(
                form, PEER_OPTION, "expected NAME (address A) (port P) (release R) (tools BITS)"
            )
        if release not in RELEASES:
            raise self._error(form, PEER_OPTION, f"release must be one of {', '.join(RELEASES)}")
        if bits not in TOOL_BITS:
            raise self._error(form, PEER_OPTION, f"tools must be one of {', '.join(TOOL_BITS)}")
        try:
            port = parse_port(sxp.child_value(value, "port", "0"))
        except ValueError as error:
            raise self._error(form, PEER_OPTION, str(error)) from error
        if name in self.peers:
            self._warn(form, f"{PEER_OPTION} {name} is given again: the first one counts")
        else:
            self.peers[name] = PeerRow(name, address, port, str(release), int(str(bits)))

    def _map(self, form: sxp.Form, kind: MapKind, value: sxp.SxpList) -> None:
        match value:
            # A vif that names no bridge may be given one.
            case [_, str(old), str(new)] if new and (old or kind is MapKind.BRIDGE):
                if (kind, old) in self.maps:
                    self._warn(form, f"{kind} {old} is given again: the first one counts")
                self.maps.setdefault((kind, old), MapRow(kind, old, new))
            case _:
                raise self._error(form, kind, "expected OLD NEW")

    def _warn(self, form: sxp.Form, text: str) -> None:
        self._warnings.append(Warning(form.line, text))

    def _error(self, form: sxp.Form, name: str, reason: str) -> ConfigError:
        return ConfigError(reason, path=str(self._path), line=form.line, option=name)


def _advice(config: XendConfig, origins: Mapping[str, int | None]) -> Iterator[Warning]:
    """Yield what is allowed and still unwise."""
    line = origins["xend-relocation-hosts-allow"] or 0
    if (config.relocation_server or config.relocation_ssl_server) and not (
        config.relocation_hosts_allow
    ):
        yield Warning(
            line,
            "the relocation server is on and xend-relocation-hosts-allow is empty: "
            "every host that reaches the port may send guests",
        )
    for pattern in split_patterns(config.relocation_hosts_allow):
        if not re.search(r"(?<!\\)(\\\\)*\$$", pattern):
            yield Warning(
                line, f"pattern {pattern} does not end in $: it matches longer names as well"
            )
        if not pattern.isprintable():
            yield Warning(
                line,
                f"pattern {sxp.show(pattern)} holds a control character and matches no host: "
                "write each backslash twice",
            )


def _without_effect(config: XendConfig, origins: Mapping[str, int | None]) -> Iterator[Warning]:
    """Yield the options of xend that were changed and do nothing here; their rows say so."""
    for attribute, row, default in options():
        line = origins[row.name]
        effect = re.search(r"Accepted, (n\w+ \w+)", row.doc)
        if line and effect and getattr(config, attribute) != default:
            yield Warning(line, f"{row.name} has no effect: it is accepted, {effect[1]}")
