"""Guests of xl that stand still because another host may own them, and what lets them go on."""

from __future__ import annotations

from dataclasses import replace

from xendpy.errors import DomainStateError
from xendpy.guest.domain import Domain, DomainState
from xendpy.hypervisor.xlguests import XlGuests
from xendpy.hypervisor.xllist import AWAY, Listed, list_guests
from xendpy.hypervisor.xlnotes import Note


def before(guest: Listed) -> str:
    """Return what a note's `stopped` says of a guest that is about to stand still."""
    return "paused" if guest.state is DomainState.PAUSED else "running"


class XlHolds(XlGuests):
    """What keeps a guest still, durably noted, and gives it back as it was."""

    def hold(self, domain: Domain, reason: str) -> None:
        """Keep a guest paused and note why: another host may own it."""
        guest = self._listed(domain)
        note = self._notes.get(guest.domid, guest.uuid)
        self._keep_still(guest, replace(note, held=reason, stopped=note.stopped or before(guest)))

    def release_hold(self, domain: Domain) -> None:
        """Give a guest that was held, or that a broken save left paused, back."""
        guest = self._listed(domain)
        note = self._notes.get(guest.domid, guest.uuid)
        if note.held or note.stopped:
            self._let_go(guest, note)

    def _check_not_held(self, guest: Listed) -> Note:
        note = self._notes.get(guest.domid, guest.uuid)
        if note.held:
            raise DomainStateError(
                guest.name,
                f"Domain '{guest.name}' is held: {note.held}; `xm migrations` shows it",
                actual="in doubt",
            )
        return note

    def _keep_still(self, guest: Listed, note: Note) -> None:
        self._notes.put(note)
        # One that xl left suspended needs no more, and would have to be unpaused besides.
        if self._state(guest) is not DomainState.SUSPENDED:
            self._xl("pause", guest.domid)

    def _let_go(self, guest: Listed, note: Note) -> None:
        """Give a guest back the name and state that it had before it was saved or held."""
        now = self._now(guest)
        if now is None:  # it ended meanwhile
            self._notes.remove(guest.domid)
            return
        if now.name.endswith(AWAY):
            self._tool.run(["rename", str(guest.domid), now.plain_name])
        state = now.state
        if state is DomainState.SUSPENDED:
            self._tool.resume(guest.domid)
            state = DomainState.RUNNING
        paused = state is DomainState.PAUSED
        if paused and note.stopped != "paused":  # after a failed save xl has done it itself
            self._xl("unpause", guest.domid)
        elif not paused and note.stopped == "paused":
            self._xl("pause", guest.domid)
        self._notes.put(replace(note, held="", stopped=""))

    def _now(self, guest: Listed) -> Listed | None:
        """Return the guest as xl shows it at this moment."""
        for found in list_guests(self._tool):
            if (found.domid, found.uuid) == (guest.domid, guest.uuid):
                return found
        return None

    def _state(self, guest: Listed) -> DomainState | None:
        now = self._now(guest)
        return None if now is None else now.state
