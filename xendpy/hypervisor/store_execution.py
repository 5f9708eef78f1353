"""How guests of the embedded store come to run: from an image, or new, by a runner.

A guest has one copy that counts: the image as long as it is whole in the store, else the process.
"""

from __future__ import annotations

import logging
from threading import Lock

from xendpy.errors import DomainStateError, Unsupported
from xendpy.guest.domain import DomainConfig
from xendpy.guest.memoryfile import MemoryFile
from xendpy.hypervisor import recordfile
from xendpy.hypervisor.pagetypes import PageTypes
from xendpy.hypervisor.runner import Arriving, GuestRunner, Running
from xendpy.hypervisor.storedimage import MEMORY, RECORDS, TYPES, StoredImage
from xendpy.hypervisor.storedir import StoreDirectory

log = logging.getLogger(__name__)


class StoreExecution:
    """Uses a runner, if there is one, and remembers by which migration its guests came."""

    def __init__(self, runner: GuestRunner | None, directory: StoreDirectory) -> None:
        self._runner = runner
        self._directory = directory
        self._arrivals: dict[int, str] = {}
        self._lock = Lock()  # two guests may come at once, and there is one file

    def adopt(self) -> list[Running]:
        """Return the guests that live on from an earlier daemon; call once, before `prepare`.

        One that has a directory, whole or incoming, was cut short on its way from there: it never
        ran, and goes.
        """
        found = list(self._runner.adopt()) if self._runner is not None else []
        imaged = self._directory.domids()
        for running in found:
            if running.domid in imaged:
                log.warning("%s is removed: it was not built to its end", running.config.name)
                running.destroy()
        adopted = [running for running in found if running.domid not in imaged]
        domids = {running.domid for running in adopted}
        known = self._directory.load_arrivals()
        # Domids are given out anew after a restart: what is gone must not lend its own.
        self._arrivals = {key: value for key, value in known.items() if key in domids}
        if self._arrivals != known:
            self._directory.write_arrivals(self._arrivals)
        return adopted

    def came_by(self, domid: int) -> str:
        """Return the id of the migration that brought a running guest, or an empty string."""
        return self._arrivals.get(domid, "")

    def can_run(self, config: DomainConfig) -> bool:
        """Return whether a runner executes such a guest."""
        return self._runner_for(config) is not None

    def check_can_boot(self, config: DomainConfig) -> None:
        """Check that the runner knows such a guest.

        Raises:
            Unsupported: no.
        """
        if not self.can_run(config):
            raise Unsupported(
                f"'{config.name}' needs Xen, and this host has only the embedded store, which"
                " keeps guests but cannot boot one",
                operation="create",
            )

    def create(self, config: DomainConfig, *, domid: int) -> Running:
        """Build a new guest, paused."""
        self.check_can_boot(config)
        assert self._runner is not None
        return self._runner.create(config, domid=domid)

    def start(self, image: StoredImage) -> Running:
        """Make a process of a guest at rest, paused, and remove its image.

        Raises:
            DomainStateError: no runner knows such a guest.
            OSError: the image could not be removed, and still counts.
        """
        name, runner = image.config.name, self._runner_for(image.config)
        if runner is None:
            raise DomainStateError(
                name,
                f"Domain '{name}' only rests in the embedded store and cannot run without Xen:"
                " send it to a Xen host with `xm migrate`, or write it to a file for one with"
                " `xm save`",
                actual="resting",
            )
        self._remember(image)
        running = _build(runner, image)
        self.replace(image, running)
        return running

    def receive(self, image: StoredImage) -> Arriving | None:
        """Return a process that waits for the guest of `image`; None: no runner knows such one.

        By which migration it comes is on disk from here on, so that `came_by` knows it as soon as
        the process counts.
        """
        runner = self._runner_for(image.config)
        if runner is None:
            return None
        self._remember(image)
        return runner.receive(image.config, domid=image.state.domid)

    def replace(self, image: StoredImage, running: Running) -> None:
        """Remove the directory of a guest whose process has everything: now the process counts.

        Raises:
            OSError: it could not be removed, and still counts; the process is gone.
        """
        try:
            self._directory.discard(image.path)
        except OSError:
            if image.path.exists():
                running.destroy()
                raise
            name = image.config.name
            log.exception("%s: its image is gone, but that may not survive a power cut", name)

    def _remember(self, image: StoredImage) -> None:
        if image.state.migration_id:
            with self._lock:
                self._arrivals[image.state.domid] = image.state.migration_id
                self._directory.write_arrivals(self._arrivals)

    def _runner_for(self, config: DomainConfig) -> GuestRunner | None:
        runner = self._runner
        return runner if runner is not None and runner.can_run(config) else None


def _build(runner: GuestRunner, image: StoredImage) -> Running:
    types = PageTypes.load(image.path / TYPES)
    records = recordfile.load(image.path / RECORDS)
    memory = MemoryFile(image.path / MEMORY)
    try:
        domid = image.state.domid
        return runner.start_from(memory, types.all(), records, image.config, domid=domid)
    finally:
        memory.close()
