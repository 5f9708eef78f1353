"""What ends the whole lab."""

from __future__ import annotations


class LabError(Exception):
    """The lab cannot be built, or does not answer."""
