"""How guests of the embedded store come to run: from an image, or new, by a runner.

A guest has one copy that counts: the image as long as it is whole in the store, else the process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from xendpy.errors import DomainStateError, Unsupported
from xendpy.guest.domain import DomainConfig
from xendpy.guest.memory import GuestMemory
from xendpy.hypervisor import recordfile
from xendpy.hypervisor.pagetypes import PageTypes
from xendpy.hypervisor.runner import GuestRunner, Running
from xendpy.hypervisor.storedir import MEMORY, RECORDS, TYPES, StoredImage, StoreDirectory

log = logging.getLogger(__name__)


class StoreExecution:
    """Uses a runner, if there is one, and remembers by which migration its guests came."""

    def __init__(self, runner: GuestRunner | None, directory: StoreDirectory) -> None:
        self._runner = runner
        self._directory = directory
        self._arrivals: dict[int, str] = {}

    def adopt(self, resting: frozenset[int]) -> Iterator[Running]:
        """Yield the guests that live on from an earlier daemon; call once.

        One whose domid is in `resting` was cut short in `start`: it never ran, and goes.
        """
        self._arrivals = self._directory.load_arrivals()
        for running in self._runner.adopt() if self._runner is not None else ():
            if running.domid in resting:
                running.destroy()
            else:
                yield running

    def came_by(self, domid: int) -> str:
        """Return the id of the migration that brought a running guest, or an empty string."""
        return self._arrivals.get(domid, "")

    def check_can_boot(self, config: DomainConfig) -> None:
        """Check that the runner knows such a guest.

        Raises:
            Unsupported: no.
        """
        if self._runner_for(config) is None:
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
        running = _build(runner, image)
        try:
            self._remember(image)
            self._directory.discard(image.path)
        except OSError:
            if image.path.exists():
                running.destroy()
                raise
            log.exception("%s: its image is gone, but that may not survive a power cut", name)
        return running

    def _remember(self, image: StoredImage) -> None:
        if image.state.migration_id:
            self._arrivals = {**self._arrivals, image.state.domid: image.state.migration_id}
            self._directory.write_arrivals(self._arrivals)

    def _runner_for(self, config: DomainConfig) -> GuestRunner | None:
        runner = self._runner
        return runner if runner is not None and runner.can_run(config) else None


def _build(runner: GuestRunner, image: StoredImage) -> Running:
    types = PageTypes.load(image.path / TYPES)
    records = recordfile.load(image.path / RECORDS)
    memory = GuestMemory.open(image.path / MEMORY, writable=False)
    try:
        domid = image.state.domid
        return runner.start_from(memory, types.all(), records, image.config, domid=domid)
    finally:
        memory.close()
