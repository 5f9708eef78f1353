"""One hand-over between two daemons, its durable operations, and power cuts at each of them."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import streams
from tests.drive import drive_bytes
from tests.guests import contents
from tests.peers.service_host import DEADLINE_S, ServiceHost, pair_configs, pair_of_services
from tests.powercut import ALL, NONE, Kept, Recorder, leave
from xendpy.control.migrate_options import MigrateOptions
from xendpy.control.migrator import MigrateRequest
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.hypervisor.durable import Durable, Operation, OperationKind
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.handover import Direction
from xendpy.paths import Paths
from xendpy.relocation.outgoing import Outcome
from xendpy.stream.xend import decode_body

NAMES = ("a", "b")
# Small: every prefix of the operations is laid out as files.
IMAGE = streams.pv_image(p2m_size=32)


@dataclass(frozen=True)
class Tape:
    """All operations of both hosts in their order, and how many were before the hand-over."""

    operations: list[Operation]
    begun: int
    place: Path
    configs: dict[str, str]


@dataclass(frozen=True)
class Cut:
    """Power fails at `victim` (a, b, ab) after `count` operations; the others are killed."""

    count: int
    victim: str
    seed: int | None = None  # None: nothing that was not synced is there

    def kept(self, host: str) -> Kept:
        """Return what the host's disk keeps of what was not synced."""
        if host not in self.victim:
            return ALL
        if self.seed is None:
            return NONE
        chance = random.Random(f"{self.seed} {host} {self.count}")
        return lambda: chance.random() < 0.5


@contextmanager
def _recorded() -> Iterator[Recorder]:
    # The daemon makes its own Durable: what each of them does is heard of at the class.
    recorder, record = Recorder(), Durable._record

    def heard(self: Durable, kind: OperationKind, path: Path, **more: object) -> None:
        recorder(Operation(kind, path, **more))  # type: ignore[arg-type]  # `target` and `data`

    Durable._record = heard  # type: ignore[method-assign]  # what this function is for
    try:
        yield recorder
    finally:
        Durable._record = record  # type: ignore[method-assign]


async def rehearse(place: Path) -> Tape:
    """Move a resting guest from host a to host b, and return what both wrote."""
    configs = pair_configs()
    with _recorded() as recorder:
        store = StoreHypervisor(Paths(place / "a"))
        with store.restore(DomainConfig.parse(streams.config("web01"))) as session:
            drive_bytes(decode_body(GuestType.PV), IMAGE.wire, session)
            session.complete()
        store.close()
        async with pair_of_services(place, configs) as (a, _):
            begun = len(recorder.operations)
            transfers = a.service.parts.transfers
            request = MigrateRequest(destination="b")
            number = await transfers.start("web01", request, MigrateOptions())
            assert await transfers.outcome(number) is Outcome.MOVED
    return Tape(recorder.operations, begun, place, configs)


def all_cuts(tape: Tape) -> list[Cut]:
    """Return a cut of either host and of both behind every operation, in each way."""
    return [
        Cut(count, victim, seed)
        for count in range(tape.begun, len(tape.operations) + 1)
        for victim in ("a", "b", "ab")
        for seed in (None, 1, 2)
    ]


async def run(tape: Tape, cut: Cut, place: Path) -> str:
    """Start both daemons on what the cut leaves; return where the guest is in the end.

    Raises:
        AssertionError: it is lost, doubled or damaged, or nobody says whose it is.
    """
    for name in NAMES:
        leave(tape.operations[: cut.count], tape.place / name, place / name, cut.kept(name))
    try:
        async with pair_of_services(place, tape.configs) as (a, b):
            async with asyncio.timeout(DEADLINE_S):
                while _open(a) or _open(b):
                    await asyncio.sleep(0.02)
            owners = [host.paths.root.name for host in (a, b) if _owns(host)]
        assert len(owners) == 1, f"owned by {owners or 'nobody'}"
        _examine(place / owners[0])
    except (AssertionError, TimeoutError) as error:
        raise AssertionError(f"{cut}: {error!r}") from error
    shutil.rmtree(place)
    return owners[0]


def _open(host: ServiceHost) -> bool:
    entries = host.service.parts.transfers.open_entries()
    return any(entry.in_doubt or entry.direction is Direction.OUT for entry in entries)


def _owns(host: ServiceHost) -> bool:
    guests = host.service.parts.guests.hypervisor.domains()
    assert [found for found in guests if found.note] == [], "held, and nothing is open"
    return bool(guests)


def _examine(root: Path) -> None:
    store = StoreHypervisor(Paths(root))
    try:
        with store.save(store.find("web01")) as source:
            found = {pfn: value for pfn, (_, value) in contents(source).items()}
            assert found == {pfn: page[0] for pfn, page in IMAGE.memory.items()}
            source.resume()
    finally:
        store.close()


def each(cuts: list[Cut], step: int) -> list[Cut]:
    """Return every `step`th cut, and the last."""
    return [*cuts[::step], cuts[-1]]
