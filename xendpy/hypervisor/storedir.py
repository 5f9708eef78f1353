"""Where the embedded store keeps guests, and what each of its directories means.

    store/KEY/             a whole guest at rest
    store/incoming/KEY/    one on its way in
    store/partial/NAME.partial/   one that broke after its first full round; never started
    store/trash/           being removed; emptied at start-up

A guest changes its place by one rename. KEY is its uuid, followed by the id of this daemon's own
migration when source and target are the same store. A guest's directory holds `memory` (sparse,
frame n at n * 4096), `types`, `records`, `config.sxp` (as received), `state.json`, and, when
partial, perhaps `rest`: the part of the stream that nobody decoded.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from xendpy.errors import HypervisorError, OutOfMemory
from xendpy.guest.domain import DomainConfig
from xendpy.guest.memory import NO_ROOM
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.storedimage import (
    CONFIG,
    GUEST_FILES,
    STATE,
    ImageState,
    PartialGuest,
    StoredImage,
    load_image,
    may_be_whole,
)

log = logging.getLogger(__name__)

ARRIVALS = "arrivals.json"  # in the store itself
MAX_DIRECTORY_NAME = 200  # of a partial guest: xend sets names no limit, file systems do


class StoreDirectory:
    """The directories of one store. Any thread, each guest in one at a time."""

    def __init__(
        self, root: Path, durable: Durable, *, max_partials: int, partials_share: float
    ) -> None:
        """Keep at most `max_partials` partial guests, in that share of the file system.

        The latest one is kept in any case.
        """
        self.root = root
        self.durable = durable
        self._incoming = root / "incoming"
        self._partial = root / "partial"
        self._trash = root / "trash"
        self._max_partials = max_partials
        self._partials_share = partials_share

    def prepare(self, now_s: float) -> None:
        """Create what is missing, and bring what an earlier daemon left to an end."""
        for path in (self._incoming, self._partial, self._trash):
            self.durable.mkdir(path)
        for path in sorted(self._trash.iterdir()):
            self.durable.remove_tree(path)
        for path in sorted(self._incoming.iterdir()):
            image = load_image(path)
            if image is not None and (image.state.first_round or may_be_whole(image)):
                reason = "the daemon ended while the guest was on its way in"
                state = replace(image.state, reason=reason, kept_time_s=now_s)
                kept = self.keep(replace(image, state=state))
                log.warning("kept %s as %s: %s", image.config.name, kept, reason)
            else:
                self.discard(path)

    def domids(self) -> frozenset[int]:
        """Return the domids of all guests that have a directory, whole or on their way in."""
        images = (
            load_image(path)
            for parent in (self.root, self._incoming)
            if parent.is_dir()
            for path in parent.iterdir()
            if (path / STATE).is_file()
        )
        return frozenset(image.state.domid for image in images if image is not None)

    def whole(self) -> Iterator[StoredImage]:
        """Yield every guest at rest; a damaged one is reported, left alone, and skipped."""
        domids: set[int] = set()
        for path in sorted(self.root.iterdir()):
            if path in (self._incoming, self._partial, self._trash) or not path.is_dir():
                continue
            missing = [name for name in GUEST_FILES if not (path / name).is_file()]
            image = None if missing else load_image(path)
            if image is None:
                log.error("%s is not a whole guest and is left alone: %s", path, missing)
            elif image.state.domid in domids:
                log.error("%s has another guest's domid and is left alone", path)
            else:
                domids.add(image.state.domid)
                yield image

    def partials(self) -> list[PartialGuest]:
        """Return the partial guests, oldest first."""
        found = []
        for path in self._partial.iterdir():
            image = load_image(path)
            if image is None:
                continue
            state = image.state
            found.append(
                PartialGuest(
                    label=path.name,
                    path=path,
                    uuid=image.config.uuid,
                    reason=state.reason,
                    rounds=state.rounds,
                    pages=state.pages,
                    kept_time_s=state.kept_time_s,
                    nr_bytes=sum(file.stat().st_blocks * 512 for file in path.iterdir()),
                )
            )
        return sorted(found, key=lambda partial: partial.kept_time_s)

    def begin(self, config: DomainConfig, state: ImageState) -> StoredImage:
        """Create the directory of a guest on its way in, with its small files; unsynced.

        A power cut may leave it without them: then it is removed, as is one without a note that
        every page has come. `sync_config` is for whoever writes that note.
        """
        suffix = re.sub(r"[^0-9A-Za-z-]", "", state.migration_id)[:64]
        key = f"{config.uuid}.{suffix}" if suffix else config.uuid
        path = self._free(self._incoming, key, self.root)
        image = StoredImage(path=path, config=config, state=state)
        try:
            self.durable.mkdir(path)
            for name, data in ((CONFIG, config.encode()), (STATE, state.encode())):
                with open(self.durable.create(path / name)) as file:
                    self.durable.append(file.fileno(), path / name, data)
        except OSError:
            self.discard(path)
            raise
        return image

    def sync_config(self, image: StoredImage) -> None:
        """Bring to disk the configuration that `begin` wrote."""
        with open(image.path / CONFIG) as file:
            self.durable.sync(file.fileno(), image.path / CONFIG)

    def write_state(self, image: StoredImage) -> None:
        """Make `image.state` durable."""
        self.durable.write_file(image.path / STATE, image.state.encode())

    def write_config(self, image: StoredImage) -> None:
        """Make `image.config` durable."""
        self.durable.write_file(image.path / CONFIG, image.config.encode())

    def settle(self, image: StoredImage) -> StoredImage:
        """Make a guest whose files are all synced a whole one, in one step."""
        target = self.root / image.path.name
        try:
            self.durable.rename(image.path, target)
        except OSError:
            # Renamed perhaps, and the disk has not said that it knows: what nobody took in must
            # not be a whole guest at the next start.
            with suppress(OSError):
                os.rename(target, image.path)
            raise
        return replace(image, path=target)

    def keep(self, image: StoredImage) -> Path:
        """Keep a guest as a partial one; the oldest beyond the limit go."""
        try:
            self.write_state(image)
        except OSError as error:
            # A full disk must not cost the guest: where it lies says that it is kept.
            log.error("%s: %s, and %s", image.path, image.state.reason, error)
        label = f"{image.config.name[:MAX_DIRECTORY_NAME]}.partial"
        target = self._free(self._partial, label)
        try:
            self.durable.rename(image.path, target)
        except OSError as error:
            if not target.exists():
                raise
            log.error("a power cut may undo that %s is kept: %s", target, error)
        try:
            self._make_room()
        except OSError as error:
            log.warning("partial guests beyond the limit stay: %s", error)
        return target

    def _make_room(self) -> None:
        for partial in self._too_many(self.partials()):
            log.warning("removed %s: there is no room for so many partial guests", partial.path)
            self.discard(partial.path)

    def _too_many(self, kept: list[PartialGuest]) -> list[PartialGuest]:
        """Return the oldest of the partial guests that have to go."""
        room = int(self._partials_share * self.total_bytes())
        used = sum(partial.nr_bytes for partial in kept)
        gone = 0
        while gone < len(kept) - 1 and (len(kept) - gone > self._max_partials or used > room):
            used -= kept[gone].nr_bytes
            gone += 1
        return kept[:gone]

    def discard(self, path: Path) -> None:
        """Remove a guest's directory: gone for every later start as soon as this begins."""
        target = self._free(self._trash, path.name)
        try:
            self.durable.rename(path, target)
        except FileNotFoundError:
            return
        except OSError as error:
            if path.exists():
                raise
            log.error("%s is removed, and a power cut may bring it back: %s", path, error)
        try:
            self.durable.remove_tree(target)
        except OSError as error:
            log.warning("%s is removed at the next start: %s", target, error)

    def load_arrivals(self) -> dict[int, str]:
        """Return by which migration each running guest came, by domid, as far as noted."""
        try:
            found = json.loads((self.root / ARRIVALS).read_bytes())
            return {int(domid): str(migration_id) for domid, migration_id in found.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise HypervisorError(f"{self.root / ARRIVALS} is damaged: {error}") from error

    def write_arrivals(self, arrivals: Mapping[int, str]) -> None:
        """Make durable what `load_arrivals` returns."""
        self.durable.write_file(self.root / ARRIVALS, json.dumps(arrivals).encode("ascii"))

    def free_bytes(self) -> int:
        """Return the room the store's file system has for us."""
        stat = os.statvfs(self.root)
        return stat.f_bavail * stat.f_frsize

    def total_bytes(self) -> int:
        stat = os.statvfs(self.root)
        return stat.f_blocks * stat.f_frsize

    def _free(self, parent: Path, name: str, *also: Path) -> Path:
        """Return `name`, or `name.2`, ..., below `parent`, taken in none of the directories."""
        candidate, count = name, 1
        while any((place / candidate).exists() for place in (parent, *also)):
            count += 1
            candidate = f"{name}.{count}"
        return parent / candidate


@contextmanager
def translated(operation: str, store: StoreDirectory) -> Iterator[None]:
    """Turn the system's errors into the driver's.

    Raises:
        OutOfMemory: the disk is full.
        HypervisorError: any other failure of the system.
    """
    try:
        yield
    except OSError as error:
        text = error.strerror or str(error)
        if error.errno in NO_ROOM - {errno.ENOMEM}:
            raise OutOfMemory(
                f"no room in {store.root}: {text}",
                wanted_bytes=0,
                free_bytes=store.free_bytes(),
                operation=operation,
            ) from error
        raise HypervisorError(f"{store.root}: {text}", operation=operation) from error
