"""What holds for every test: nothing is judged by the clock, for the machine may be a busy one."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
