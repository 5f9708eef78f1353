"""xend-relocation-hosts-allow: who may talk to the relocation port.

Source: connection.py hostAllowed, Xen 3.0.4 - 4.4: the value is split at single spaces, each
piece is a regular expression, and a peer is let in if any of them matches, from its start, the
peer's full name or its dotted address. An empty value lets everybody in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from xendpy.config_values import split_patterns
from xendpy.errors import ConfigError

OPTION = "xend-relocation-hosts-allow"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a peer is let in, and by which pattern; '' = the list is empty."""

    allowed: bool
    rule: str


@dataclass(frozen=True, slots=True)
class HostsAllow:
    """The compiled patterns; none of them = everybody."""

    patterns: tuple[str, ...]
    compiled: tuple[re.Pattern[str], ...]

    @classmethod
    def parse(cls, text: str, *, path: str = "", line: int | None = None) -> HostsAllow:
        """Return the rules that `text` holds.

        Raises:
            ConfigError: a pattern is empty (a double, leading or trailing space makes xend let
                everybody in) or no regular expression.
        """
        try:
            patterns = split_patterns(text)
        except ValueError as error:
            raise ConfigError(str(error), path=path, line=line, option=OPTION) from error
        return cls(patterns, tuple(re.compile(pattern) for pattern in patterns))

    def match_address(self, address: str) -> str | None:
        """Return the pattern that lets `address` in without its name; '' for an empty list."""
        return "" if not self.patterns else self._match(address)

    def decide(self, address: str, name: str | None) -> Verdict:
        """Return the verdict on a peer whose look-up gave `name`, or nothing."""
        rule = self.match_address(address)
        if rule is None and name:
            rule = self._match(name)
        return Verdict(rule is not None, rule or "")

    def match_names(self, names: Iterable[str]) -> str | None:
        """Return the pattern that one of a verified certificate's names lets in."""
        if not self.patterns:
            return ""
        return next((rule for name in names if (rule := self._match(name)) is not None), None)

    def _match(self, text: str) -> str | None:
        for pattern, compiled in zip(self.patterns, self.compiled, strict=True):
            if compiled.match(text):
                return pattern
        return None
