"""The log's lines about clients' calls."""

from __future__ import annotations

import logging


class CallLog:
    """Logs calls; one that comes again and again is told of twice: at first, and how often.

    `virsh list` of 1,000 guests asks 1,000 times for a state, and who watches a migration asks
    three times a second: a line each would push all else out of the log, and cost more than the
    answers.
    """

    def __init__(self, log: logging.Logger, what: str = "") -> None:
        self._log = log
        self._what = what  # goes before each name
        self._last = ""
        self._repeats = 0

    def note(self, call: str) -> None:
        """Log a call; "" = there are no more."""
        if call == self._last:
            self._repeats += 1
            return
        if self._repeats:
            self._log.debug("< %s%s, %d times more", self._what, self._last, self._repeats)
        if call:
            self._log.debug("< %s%s", self._what, call)
        self._last, self._repeats = call, 0
