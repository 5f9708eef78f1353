"""One guest as the embedded store keeps it: the files of its directory, and what they say."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from xendpy.errors import HypervisorError, XendError
from xendpy.guest.domain import DomainConfig
from xendpy.guest.pages import PAGE_SHIFT

log = logging.getLogger(__name__)

MEMORY = "memory"
TYPES = "types"
RECORDS = "records"
CONFIG = "config.sxp"
STATE = "state.json"
REST = "rest"
GUEST_FILES = (MEMORY, TYPES, RECORDS, CONFIG, STATE)
# A guest's configuration knows its memory only nearly: HVM guests have some pages more or less.
MISSING_SHIFT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageState:
    """state.json: what is known of a guest beside its image.

    `held`: why nobody may start it, as the hand-over put it. `migration_id`: this daemon's own
    migration that brought it. `first_round`: every page has come once. `reason`, `kept_time_s`:
    why and when it was kept as a partial guest.
    """

    domid: int
    start_time_s: float
    held: str = ""
    migration_id: str = ""
    first_round: bool = False
    rounds: int = 0
    pages: int = 0
    reason: str = ""
    kept_time_s: float = 0.0

    def encode(self) -> bytes:
        return json.dumps({"version": 1, **asdict(self)}, indent=1).encode("ascii") + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> ImageState:
        """Return what `encode` wrote.

        Raises:
            HypervisorError: it is something else.
        """
        try:
            values = json.loads(data)
            if values.pop("version") != 1:
                raise ValueError("unknown version")
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise HypervisorError(f"{STATE} is damaged: {error}", operation="load") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A guest's directory and what its small files say."""

    path: Path
    config: DomainConfig
    state: ImageState


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialGuest:
    """A guest that arrived in part: for an operator to look into."""

    label: str  # NAME.partial
    path: Path
    uuid: str
    reason: str
    rounds: int
    pages: int
    kept_time_s: float
    nr_bytes: int  # of disk


def may_be_whole(image: StoredImage) -> bool:
    """Whether a guest that nobody could note anything of has come as a whole, or nearly.

    Then an old sender may have let go of it: of a guest that was not sent live the first round is
    the last, and a disk that takes no note takes no rename either. A xendpy host, whose migrations
    have ids, lets go only when it was told.
    """
    if image.state.migration_id:
        return False
    missing = _pages_of(image.config) - _count_present(image.path / TYPES)
    return missing <= _pages_of(image.config) >> MISSING_SHIFT


def _pages_of(config: DomainConfig) -> int:
    return config.memory_mib << 20 >> PAGE_SHIFT


def _count_present(types: Path) -> int:
    try:
        return int(np.count_nonzero(np.fromfile(types, np.uint8)))
    except OSError:
        return 0


def load_image(path: Path) -> StoredImage | None:
    """Return what a guest's directory says of it, or None with a line in the log."""
    try:
        config = DomainConfig.parse((path / CONFIG).read_bytes())
        state = ImageState.decode((path / STATE).read_bytes())
    except (OSError, XendError) as error:
        log.warning("%s: %s", path, error)
        return None
    return StoredImage(path=path, config=config, state=state)
