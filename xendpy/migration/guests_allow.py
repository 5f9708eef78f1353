"""xendpy-relocation-guests-allow: which guests may come in, by name or uuid."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xendpy.config_values import split_patterns
from xendpy.errors import DomainError
from xendpy.guest.domain import DomainConfig
from xendpy.migration.preflight import Check, Status

OPTION = "xendpy-relocation-guests-allow"


@dataclass(frozen=True, slots=True)
class GuestsAllow:
    """The compiled patterns, each for a whole name or uuid; none of them = every guest."""

    patterns: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> GuestsAllow:
        """Return the rules in an option's value, which the table of options has checked."""
        return cls(tuple(re.compile(pattern) for pattern in split_patterns(text)))

    def allows(self, config: DomainConfig) -> bool:
        """Say whether this guest may come in."""
        return not self.patterns or any(
            pattern.fullmatch(key)
            for pattern in self.patterns
            for key in (config.name, config.uuid)
        )

    def require(self, config: DomainConfig) -> None:
        """Raise DomainError unless this guest may come in."""
        if not self.allows(config):
            raise DomainError(config.name, refused_text(config))

    def check(self, config: DomainConfig) -> Check:
        """Return the same as a line of preflight."""
        if self.allows(config):
            return Check("guests-allow", Status.OK, f"{config.name} may come in")
        return Check("guests-allow", Status.FAILED, refused_text(config))


EVERY_GUEST = GuestsAllow()


def refused_text(config: DomainConfig) -> str:
    """Return what a sender is told; without quotes, which an old xend cannot show."""
    return f"{config.name} may not come in: no pattern of {OPTION} matches its name or uuid"
