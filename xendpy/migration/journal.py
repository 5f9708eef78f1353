"""The journal of migrations: every step of every hand-over, on disk before it is acted on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from xendpy.errors import JournalError, MigrationError
from xendpy.hypervisor.durable import Durable
from xendpy.migration.handover import AWAY, NEXT, RECLAIMED, Direction, Entry, Step

HISTORY = 200  # closed entries kept for `xm migrations`


class Journal:
    """The entries of one host, one small file each below `directory`.

    Every change is on disk, through `durable`, before the call returns. Any thread may call; a
    migration has one writer at a time, which the callers see to.
    """

    def __init__(self, directory: Path, durable: Durable, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._durable = durable
        self._clock = clock
        self._entries: dict[tuple[str, Direction], Entry] = {}
        # Guards the dictionary only; no I/O happens under it.
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._on_owned: list[Callable[[Entry], None]] = []
        durable.mkdir(directory)
        for path in sorted(directory.glob("*.json")):
            entry = _load(path)
            self._entries[entry.key] = entry
        self._prune()

    def on_owned(self, listener: Callable[[Entry], None]) -> None:
        """Have `listener` called when a guest that came in is this host's, once that is on disk.

        In the thread that wrote it down. After a crash it is called once more.
        """
        self._on_owned.append(listener)

    def begin(self, entry: Entry) -> Entry:
        """Write a new entry down.

        Raises:
            MigrationError: the id is known already.
            JournalError: it cannot be written.
        """
        # Nobody may advance it before it is on disk: the older step would be written last.
        with self._turn:
            if self.get(entry.id, entry.direction) is not None:
                raise MigrationError(f"migration {entry.id} is known already")
            now_s = self._clock()
            number = 1 + max((known.number for known in self.entries()), default=0)
            return self._put(replace(entry, number=number, created_s=now_s, updated_s=now_s))

    def advance(
        self,
        entry_id: str,
        direction: Direction,
        step: Step,
        *,
        reason: str = "",
        seen: Step | None = None,
    ) -> Entry:
        """Write down that a migration has come to `step`, and return the entry.

        Coming again to the step it is at changes the reason at most. `seen` is where the caller
        has seen it, if what it decided is right from there alone.

        Raises:
            MigrationError: the step may not follow, or it is not where it was seen; somebody else
                was quicker.
            JournalError: it cannot be written; the entry stays at the step before.
        """
        advanced = self._advance(entry_id, direction, step, reason, seen)
        if step is Step.OWNED:
            for listener in self._on_owned:
                listener(advanced)
        return advanced

    def _advance(
        self, entry_id: str, direction: Direction, step: Step, reason: str, seen: Step | None
    ) -> Entry:
        # Held over the write: two threads may decide about one migration (its own connection and
        # a redialling source), and what is on disk first must be what counts.
        with self._turn:
            entry = self._known(entry_id, direction)
            if entry.step is step and not reason:
                return entry
            moved = seen is not None and entry.step is not seen
            if moved or (entry.step is not step and step not in NEXT[entry.step]):
                raise MigrationError(
                    f"migration {entry_id}: {step} may not follow {entry.step}",
                    migration_id=entry_id,
                    state=entry.step,
                )
            closing = step is Step.CLOSED and entry.step is not step
            advanced = self._put(
                replace(
                    entry,
                    step=step,
                    result=entry.result or str(entry.step) if closing else entry.result,
                    reason=reason or entry.reason,
                    updated_s=self._clock(),
                )
            )
            if closing:
                self._prune()
            return advanced

    def learn_peer(
        self, entry_id: str, direction: Direction, host_id: str, *, local: bool
    ) -> Entry:
        """Write down which host the peer is: only that one may settle the migration."""
        with self._turn:
            entry = self._known(entry_id, direction)
            return self._put(replace(entry, peer_host_id=host_id, local=local))

    def get(self, entry_id: str, direction: Direction) -> Entry | None:
        """Return the entry with that id, or None."""
        with self._lock:
            return self._entries.get((entry_id, direction))

    def _known(self, entry_id: str, direction: Direction) -> Entry:
        entry = self.get(entry_id, direction)
        if entry is None:
            raise AssertionError(f"migration {entry_id} ({direction}) is not in the journal")
        return entry

    def _put(self, entry: Entry) -> Entry:
        self._write(entry)
        with self._lock:
            self._entries[entry.key] = entry
        return entry

    def find(self, prefix: str) -> Entry:
        """Return the one entry whose id begins with `prefix`.

        Raises:
            MigrationError: there is none, or more than one.
        """
        found = [entry for entry in self.entries() if entry.id.startswith(prefix.lower())]
        doubtful = [entry for entry in found if not entry.closed] or found
        if len(doubtful) != 1 or not prefix:
            what = "no migration" if not found else f"{len(found)} migrations"
            raise MigrationError(f"{what} with an id that begins with '{prefix}'")
        return doubtful[0]

    def entries(self) -> list[Entry]:
        """Return every entry, oldest first."""
        with self._lock:
            return sorted(
                self._entries.values(), key=lambda entry: (entry.number, entry.created_s)
            )

    def open_entries(self) -> list[Entry]:
        """Return the entries that are not closed, oldest first."""
        return [entry for entry in self.entries() if not entry.closed]

    def moved_away(self, uuid: str, name: str = "") -> Entry | None:
        """Return the entry by which a guest left this host and did not come back.

        With `name` a guest of that name counts as well: a configuration file without a uuid is
        another guest every time it is read, with the same disks.
        """
        entries = self.entries()
        return _departure(
            [entry for entry in entries if entry.uuid == uuid or (name and entry.name == name)]
        )

    def is_latest(self, entry: Entry) -> bool:
        """Say whether a copy of the guest on this host can only be the one that `entry` is about.

        It may be another once the guest came in or went out by a later migration, or an operator
        has taken it back. The other half of a migration within this host is not a later one.
        """
        known = self._known(entry.id, entry.direction)
        return known.result != RECLAIMED and not any(
            later.uuid == known.uuid and later.number > known.number and later.id != known.id
            for later in self.entries()
            if Step.NOT_RECEIVED not in (later.step, later.result)
        )

    def reclaim(self, entry: Entry) -> Entry:
        """Write down that an operator has taken back, by force, a guest that had moved away."""
        with self._turn:
            known = self._known(entry.id, entry.direction)
            return self._put(replace(known, result=RECLAIMED, updated_s=self._clock()))

    def _write(self, entry: Entry) -> None:
        path = self._path(entry)
        body = json.dumps(asdict(entry), indent=1, sort_keys=True).encode()
        try:
            self._durable.write_file(path, body)
        except OSError as error:
            raise JournalError(
                (error.strerror or str(error)).lower(),
                migration_id=entry.id,
                placed=_may_hold(path, body),
            ) from error

    def _prune(self) -> None:
        entries = self.entries()
        old = [entry for entry in entries if entry.closed][:-HISTORY]
        last = _last_words(entries) if old else frozenset()
        for entry in old:
            if entry.key in last:
                continue  # the only memory of where that guest went
            with suppress(OSError):  # next time
                self._durable.unlink(self._path(entry))
                with self._lock:
                    del self._entries[entry.key]

    def _path(self, entry: Entry) -> Path:
        return self._directory / f"{entry.id}.{entry.direction}.json"


def _departure(entries: Sequence[Entry]) -> Entry | None:
    """Return by which of one guest's entries, oldest first, it left and did not come back."""
    last: Entry | None = None
    for entry in entries:
        if entry.local:
            continue
        if entry.direction is Direction.OUT:
            reclaimed = entry.result == RECLAIMED
            away = not reclaimed and (entry.step in AWAY or entry.result == Step.MOVED)
            last = entry if away else None
        elif entry.step in (Step.OWNED, Step.RUNNING) or entry.result == Step.RUNNING:
            last = None
    return last


def _last_words(entries: Sequence[Entry]) -> frozenset[tuple[str, Direction]]:
    """Return the keys of the entries by which guests left that did not come back."""
    guests: dict[str, list[Entry]] = {}
    for entry in entries:
        guests.setdefault(entry.uuid, []).append(entry)
    departures = map(_departure, guests.values())
    return frozenset(entry.key for entry in departures if entry is not None)


def _may_hold(path: Path, body: bytes) -> bool:
    try:
        return path.read_bytes() == body
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _load(path: Path) -> Entry:
    try:
        values = json.loads(path.read_bytes())
        values["direction"] = Direction(values["direction"])
        values["step"] = Step(values["step"])
        return Entry(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise MigrationError(f"{path}: not a journal entry: {error}") from error
