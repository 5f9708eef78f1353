"""What this daemon knows of xl's guests and xl does not: one small durable file each.

    DIR/var/lib/xend/xl/DOMID.json

The configuration as it came, the migration that brought the guest, whether it is held in doubt.
What has changed of it since, xl knows: see xlchanges.
A note belongs to one domid and uuid; one whose guest is gone is removed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from xendpy.hypervisor.durable import Durable


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One guest's note; `raw` is its configuration in latin-1, empty where xl's counts.

    `stopped` is set from the moment at which a save may leave the guest paused, to what undoes
    it: "running" or "paused". `held` says why the guest is kept suspended. `spool` is the save
    file to remove once the guest runs. `received`: the configuration is what another host claims.
    """

    domid: int
    uuid: str
    raw: str = ""
    migration_id: str = ""
    held: str = ""
    stopped: str = ""
    start_time_s: float = 0.0
    spool: str = ""
    received: bool = False


class Notes:
    """The notes of one state directory. Any thread: each file has one writer at a time."""

    def __init__(self, directory: Path, durable: Durable) -> None:
        self._directory = directory
        self._durable = durable
        durable.mkdir(directory)

    def get(self, domid: int, uuid: str) -> Note:
        """Return the note of that guest, an empty one if there is none."""
        note = self._read(self._path(domid))
        return note if note is not None and note.uuid == uuid else Note(domid=domid, uuid=uuid)

    def put(self, note: Note) -> None:
        """Write a note down."""
        body = json.dumps(asdict(note), indent=1, sort_keys=True).encode()
        self._durable.write_file(self._path(note.domid), body)

    def remove(self, domid: int) -> None:
        """Forget a guest."""
        self._durable.unlink(self._path(domid))

    def keep_only(self, live: Iterable[tuple[int, str]]) -> None:
        """Forget every guest that is not `(domid, uuid)` of a live one."""
        known = set(live)
        for path in self._directory.glob("[0-9]*.json"):
            note = self._read(path)
            if note is None or (note.domid, note.uuid) not in known:
                self._durable.unlink(path)

    def of_migration(self, migration_id: str) -> list[Note]:
        """Return the notes of guests which that migration brought."""
        notes = (self._read(path) for path in self._directory.glob("[0-9]*.json"))
        return [note for note in notes if note is not None and note.migration_id == migration_id]

    def _path(self, domid: int) -> Path:
        return self._directory / f"{domid}.json"

    def _read(self, path: Path) -> Note | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Note(**json.loads(path.read_bytes()))
        return None
