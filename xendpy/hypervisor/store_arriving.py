"""A guest on its way into the embedded store and into the process that will run it.

Its memory is the runner's from the first page on. The directory of a guest on its way in stays
until the process has everything: as long as it is there, the process never ran and does not count.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from xendpy.guest.domain import Domain
from xendpy.guest.pages import PAGE_SHIFT
from xendpy.hypervisor import recordfile
from xendpy.hypervisor.runner import Arriving, Running
from xendpy.hypervisor.sparse import copy_sparse
from xendpy.hypervisor.store_restore import StoreRestore
from xendpy.hypervisor.storedimage import MEMORY, RECORDS, StoredImage
from xendpy.hypervisor.storedir import StoreDirectory, translated


class ArrivingRestore(StoreRestore):
    """Takes one guest into a process that waits; a StoreRestore otherwise."""

    def __init__(
        self,
        directory: StoreDirectory,
        image: StoredImage,
        arriving: Arriving,
        on_started: Callable[[StoredImage, Running], Domain],
    ) -> None:
        """Take over `arriving`; `on_started` removes the directory and enters the guest."""
        super().__init__(directory, image, _never, arriving.memory)
        self._arriving = arriving
        self._on_started = on_started

    def complete(self) -> Domain:
        """Make a guest of the process, paused; syncs nothing: a process has nothing on disk."""
        self._check()
        with translated("restore", self._directory):
            self._finish()
            records = recordfile.load(self._image.path / RECORDS)
            running = self._arriving.start(self._types.all(), records)
            domain = self._on_started(self._image, running)
        self._settled = True
        return domain

    def keep(self, reason: str) -> str:
        """Copy what has come to disk, and keep it as NAME.partial."""
        with translated("keep", self._directory):
            fd = self._durable.create(self._image.path / MEMORY)
            try:
                size = self._memory.nr_pages << PAGE_SHIFT
                os.ftruncate(fd, size)
                copy_sparse(self._memory.fd, fd, size)
                self._durable.sync(fd, self._image.path / MEMORY)
            finally:
                os.close(fd)
        return super().keep(reason)

    def _close_memory(self) -> None:
        # Before the directory goes: as long as that is there, the process does not count.
        self._arriving.discard()

    def _note_first_round(self) -> None:
        # The memory goes with the daemon: a later one would find nothing worth keeping.
        pass

    def _sync(self) -> None:
        self._sync_small()


def _never(image: StoredImage) -> Domain:
    raise AssertionError(f"{image.path} is not at rest")
