"""What is left on disk of guests from old senders that are not here, and what an operator can do.

A save file goes when its guest runs (xlspool). After a crash, or a build that failed, it may be
the only copy there is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from xendpy.errors import DomainNotFound, HypervisorError, XendError
from xendpy.guest.domain import DomainConfig, DomainState
from xendpy.guest.pages import PAGE_SIZE
from xendpy.hypervisor.pipes import PipeReader, pull
from xendpy.hypervisor.storedimage import PartialGuest
from xendpy.hypervisor.xladmission import Admission
from xendpy.hypervisor.xllist import Listed, list_guests
from xendpy.hypervisor.xlnotes import Notes
from xendpy.hypervisor.xlrestore import REST
from xendpy.hypervisor.xlspool import PARTIAL, SAVED, recover
from xendpy.hypervisor.xltool import Tool
from xendpy.stream.steps import Steps
from xendpy.stream.xend import read_envelope

log = logging.getLogger(__name__)


def tell(directory: Path, guests: Sequence[Listed], notes: Notes) -> None:
    """Log what an earlier daemon has left: paused guests, and files that nobody else mentions.

    Raises:
        OSError: what it was receiving cannot be kept under its final name.
    """
    told = set()
    for guest in guests:
        note = notes.get(guest.domid, guest.uuid)
        if note.spool and guest.state is DomainState.PAUSED:
            told.add(Path(note.spool))
            _tell_of_paused(guest)
    for path in recover(directory):
        log.warning("%s is what an earlier daemon was receiving: xm inspect shows it", path)
    for path in _files(directory, SAVED):
        here = _here(path, guests)
        if here is None:
            log.warning(
                "%s is a guest that came from an old xend as a whole and is not here:"
                " if no other host has it, restore it with: xm restore %s",
                path,
                path,
            )
        elif here.state is DomainState.PAUSED and path not in told:
            _tell_of_paused(here)
            log.warning(
                "should %s not be here any more, restore it with: xm restore %s", here.name, path
            )


def _tell_of_paused(guest: Listed) -> None:
    log.warning(
        "%s came from an old xend and was not started yet when the daemon ended:"
        " if that host has let it go, xm unpause %s",
        guest.name,
        guest.name,
    )


def partials(directory: Path, tool: Tool, admission: Admission) -> list[PartialGuest]:
    """Return the guests that are in `directory` alone, oldest first."""
    files = [*_files(directory, SAVED), *_files(directory, PARTIAL)]
    arriving = admission.spools()  # asked for first: who has arrived meanwhile is in xl's list
    guests = list_guests(tool) if files else []
    found = []
    for path in files:
        whole = path.suffix == SAVED
        if path in arriving or (whole and _here(path, guests) is not None):
            continue
        with suppress(OSError):  # it has gone meanwhile
            found.append(_kept(path, whole=whole))
    return sorted(found, key=lambda partial: partial.kept_time_s)


def _kept(path: Path, *, whole: bool) -> PartialGuest:
    config, status = _config(path), path.stat()
    bytes_used = status.st_blocks * 512
    reason = "its stream broke off"
    if whole:
        reason = f"if no other host has it, restore it with: xm restore {path}"
    return PartialGuest(
        label=path.name,
        path=path,
        uuid=config.uuid if config is not None else "",
        reason=reason,
        rounds=1,
        pages=bytes_used // PAGE_SIZE,
        kept_time_s=status.st_mtime,
        nr_bytes=bytes_used,
    )


def forget(directory: Path, uuid: str) -> None:
    """Remove the save files of a guest that runs: its memory has gone on since.

    Raises:
        OSError: the disk does not let one go.
    """
    for path in _files(directory, SAVED):
        config = _config(path)
        if config is not None and config.uuid == uuid:
            path.unlink(missing_ok=True)


def discard(label: str, kept: Sequence[PartialGuest]) -> None:
    """Remove the file of one of the guests that `partials` returned.

    Raises:
        DomainNotFound: it is none of them.
        HypervisorError: the disk does not let it go.
    """
    path = next((partial.path for partial in kept if partial.label == label), None)
    if path is None:
        raise DomainNotFound(label)
    try:
        path.unlink(missing_ok=True)
        Path(f"{path}{REST}").unlink(missing_ok=True)
    except OSError as error:
        raise HypervisorError(f"{path}: {error.strerror}", operation="discard") from error


def _files(directory: Path, suffix: str) -> list[Path]:
    return sorted(directory.glob(f"*{suffix}"))


def _here(path: Path, guests: Sequence[Listed]) -> Listed | None:
    """Return the guest that a save file is a copy of, if xl has it."""
    config = _config(path)
    for guest in guests:
        if config and guest.uuid == config.uuid and guest.state is not DomainState.DYING:
            return guest
    return None


def _config(path: Path) -> DomainConfig | None:
    """Return the configuration in a save file of xend's; None if it cannot be read."""
    found = []

    def steps() -> Steps[None]:
        found.append((yield from read_envelope()))

    try:
        with closing(PipeReader(os.open(path, os.O_RDONLY | os.O_CLOEXEC))) as source:
            for _ in pull(steps(), source):
                raise AssertionError("an envelope has no records")
        return DomainConfig.parse(found[0].config_bytes)
    except (OSError, XendError) as error:
        log.debug("%s: %s", path, error)
        return None
