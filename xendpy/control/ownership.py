"""Acts on what the journal says about guests: after a crash, an answer, or an operator's word.

Every function journals first and acts then, so that it can be run again after a crash in between.
"""

from __future__ import annotations

import logging

from xendpy.control.workers import Workers
from xendpy.errors import DomainNotFound, DomainStateError, MigrationError
from xendpy.guest.domain import Domain
from xendpy.hypervisor.base import Hypervisor
from xendpy.migration.handover import Direction, Entry, Step
from xendpy.migration.journal import Journal
from xendpy.relocation.resolve import drop, give_up, take_over

log = logging.getLogger(__name__)

KEEP, DISCARD = "keep", "discard"


class Ownership:
    """What this host does with its guests because of its journal."""

    def __init__(self, hypervisor: Hypervisor, journal: Journal, workers: Workers) -> None:
        self._hypervisor = hypervisor
        self._journal = journal
        self._workers = workers

    async def recover(self) -> None:
        """Bring what an earlier daemon left open to where its journal says; at start-up."""
        for entry in self._journal.open_entries():
            recover = self._recover_out if entry.direction is Direction.OUT else self._recover_in
            try:
                await self._workers.quick(recover, entry)
            except DomainNotFound:
                log.warning("migration %s: %s is not here any more", entry.id[:8], entry.name)

    def _recover_out(self, entry: Entry) -> None:
        if entry.step is Step.SENDING:
            reason = "the daemon was restarted while it was being sent"
            entry = self._keep(entry, reason)
            log.warning("migration %s: %s stays here: %s", entry.id[:8], entry.name, reason)
        if entry.step is Step.KEPT:
            self._give_back(entry)
        elif entry.step in (Step.SENT, Step.RELEASED):
            self._keep_still(entry)
        elif entry.step is Step.MOVED:
            self._remove(entry)

    def _recover_in(self, entry: Entry) -> None:
        if entry.step is Step.INCOMING:
            give_up(entry, self._journal, self._hypervisor, "the daemon was restarted")
        elif entry.step is Step.NOT_RECEIVED:
            domain = self._hypervisor.arrival(entry.id)
            if domain is not None:
                self._hypervisor.destroy(domain)
        elif entry.step is Step.OWNED:
            take_over(entry, self._journal, self._hypervisor)

    async def heard(self, entry: Entry, state: str) -> bool:
        """Act on what the target of `entry` stands by; False if that settles nothing."""
        return await self._workers.quick(self._heard, entry, state)

    def _heard(self, entry: Entry, state: str) -> bool:
        if entry.step is Step.RELEASED and state == "running":
            self._journal.advance(entry.id, Direction.OUT, Step.MOVED)
            self._remove(entry)
            log.info("migration %s: %s runs on %s", entry.id[:8], entry.name, entry.peer)
            return True
        if entry.step is Step.RELEASED and state == "not-received":
            reason = f"{entry.peer} has not received it"
            self._journal.advance(entry.id, Direction.OUT, Step.KEPT, reason=reason)
            self._give_back(entry)
            log.warning("migration %s: %s goes on here: %s", entry.id[:8], entry.name, reason)
            return True
        if entry.step is Step.MOVED or (entry.step is Step.KEPT and state != "received"):
            if entry.step is Step.MOVED:
                self._remove(entry)
            self._journal.advance(entry.id, Direction.OUT, Step.CLOSED)
            return True
        return False

    async def keep(self, entry: Entry) -> Entry:
        """Write down that a guest stays here whose sending failed when nothing could be written.

        It is let go on, if it was held for that.
        """
        return await self._workers.quick(self._keep, entry, "the journal could not be written")

    def _keep(self, entry: Entry, reason: str) -> Entry:
        kept = self._journal.advance(entry.id, Direction.OUT, Step.KEPT, reason=reason)
        self._give_back(kept)
        return kept

    async def close(self, entry: Entry) -> None:
        """Close an entry about which nobody is left to be told."""
        await self._workers.quick(self._close, entry)

    def _close(self, entry: Entry) -> None:
        if entry.step is Step.MOVED:
            self._remove(entry)
        self._journal.advance(entry.id, entry.direction, Step.CLOSED)

    async def settle(self, entry: Entry, choice: str) -> Entry:
        """Let an operator decide: `keep` = the guest is this host's, `discard` = it is not.

        Raises:
            MigrationError: nothing is in doubt, or the choice is none.
        """
        if choice not in (KEEP, DISCARD):
            raise MigrationError(f"expected keep or discard, not {choice}")
        if not entry.in_doubt:
            raise MigrationError(
                f"migration {entry.id} is not in doubt: it is {entry.result or entry.step}"
            )
        settle = self._settle_out if entry.direction is Direction.OUT else self._settle_in
        await self._workers.quick(settle, entry, choice)
        log.warning("migration %s: an operator said %s", entry.id[:8], choice)
        return self._known(entry)

    def _settle_out(self, entry: Entry, choice: str) -> None:
        if choice == KEEP:
            self._journal.advance(entry.id, Direction.OUT, Step.KEPT, reason="settled: keep")
            self._give_back(entry)
        else:
            self._journal.advance(entry.id, Direction.OUT, Step.MOVED, reason="settled: discard")
            self._remove(entry)

    def _settle_in(self, entry: Entry, choice: str) -> None:
        if choice == KEEP:
            take_over(entry, self._journal, self._hypervisor)
        else:
            drop(entry, self._journal, self._hypervisor, "settled: discard")
        if not entry.peer_host_id:  # a xend will never ask
            self._journal.advance(entry.id, Direction.IN, Step.CLOSED)

    def refuse_in_doubt(self, uuid: str, name: str, verb: str, *, by_name: bool = False) -> None:
        """Refuse to touch a guest that another host may own.

        `by_name`: one of the same name counts as the same guest.

        Raises:
            DomainStateError: the journal says so; the text names the way out.
        """
        for entry in self._journal.open_entries():
            same = entry.uuid == uuid or (by_name and entry.name == name)
            if not same or entry.local:
                continue
            if entry.step is Step.INCOMING:
                text = f"Cannot {verb} domain '{name}': it is coming in from {entry.peer}"
                raise DomainStateError(name, text, actual="coming in")
            if entry.in_doubt:
                raise DomainStateError(
                    name,
                    f"Cannot {verb} domain '{name}': {entry.peer} may own it (migration"
                    f" {entry.id[:8]}); look there first, then"
                    f" `xm migrations settle {entry.id[:8]} keep|discard`",
                    actual="in doubt",
                )

    def refuse_unless_owned(
        self, uuid: str, name: str, verb: str, *, force: bool = False, by_name: bool = False
    ) -> None:
        """Refuse to make a guest runnable that another host owns, or may own.

        With `force` a guest that moved away is this host's again: the operator answers for it.
        `by_name`: one of the same name counts as the same guest.

        Raises:
            DomainStateError: the journal says so; the text names the way out.
        """
        self.refuse_in_doubt(uuid, name, verb, by_name=by_name)
        away = self._journal.moved_away(uuid, name if by_name else "")
        if away is None:
            return
        if not force:
            raise DomainStateError(
                name,
                f"Cannot {verb} domain '{name}': it was moved to {away.peer};"
                f" --force does it all the same (`xm {verb} --force`)",
                actual="moved away",
            )
        self._journal.reclaim(away)
        log.warning("domain %s, moved to %s, is taken back by force: %s", name, away.peer, verb)

    def _known(self, entry: Entry) -> Entry:
        known = self._journal.get(entry.id, entry.direction)
        assert known is not None
        return known

    def _own_copy(self, entry: Entry) -> Domain | None:
        """Return this host's copy of a guest that goes out, if it is still here.

        One that came back since then, or was taken back, is none of this migration's business.
        """
        if not self._journal.is_latest(entry):
            return None
        arrived = self._hypervisor.arrival(entry.id)
        for summary in self._hypervisor.domains():
            assert summary.domid is not None
            if summary.uuid == entry.uuid and (arrived is None or summary.domid != arrived.domid):
                return Domain(domid=summary.domid, uuid=summary.uuid, name=summary.name)
        return None

    def _give_back(self, entry: Entry) -> None:
        domain = self._own_copy(entry)
        if domain is not None:
            self._hypervisor.release_hold(domain)

    def _keep_still(self, entry: Entry) -> None:
        domain = self._own_copy(entry)
        if domain is not None:
            self._hypervisor.hold(domain, f"{entry.peer} may own it")

    def _remove(self, entry: Entry) -> None:
        domain = self._own_copy(entry)
        if domain is not None:
            self._hypervisor.destroy(domain)
