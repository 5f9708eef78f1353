"""A driver without guests' memory: what the service calls need, and no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from xendpy.errors import DomainExists, DomainNotFound
from xendpy.guest.domain import Domain, DomainConfig, DomainState, DomainSummary, GuestType
from xendpy.guest.pages import DirtyBitmap, PageBatch, Pfns, runs
from xendpy.hypervisor.base import Capabilities, Placement
from xendpy.stream.records import (
    End,
    OnlineVcpus,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    SharedInfo,
    StreamStart,
    UnmappedPfns,
    VcpuContext,
    VcpuContextKind,
)

PAGE = 4096
NR_PAGES = 2048
PV64_CONTEXT = bytes(5168)


class FakeSource:
    """A guest of NR_PAGES pages whose page n is filled with n & 0xff; some pfns do not exist."""

    live = True

    def __init__(self, owner: FakeHypervisor, guest: DomainSummary) -> None:
        self._owner = owner
        self._guest = guest
        self.config = guest.config
        self.nr_pages = NR_PAGES
        self.ended: list[str] = []
        fill = np.arange(NR_PAGES, dtype=np.uint64) & np.uint64(0xFF)
        self.memory = np.repeat(fill.astype(np.uint8), PAGE)

    def present(self) -> DirtyBitmap:
        return DirtyBitmap.of(NR_PAGES, np.arange(16, NR_PAGES, dtype=np.uint64))

    def opening(self) -> Iterator[Record]:
        yield StreamStart(
            guest_type=GuestType.PV, format="legacy", tool_width=8, p2m_size=NR_PAGES
        )
        yield PvInfo(guest_width=8, pt_levels=4, context=PV64_CONTEXT)
        frames = np.arange(16, 20, dtype=np.uint64)
        yield P2mFrames(0, NR_PAGES - 1, frames)

    def read(self, pfns: Pfns) -> Pages:
        self._owner.reading.set()
        assert self._owner.may_read.wait(80)
        if self._owner.fail_read:
            raise self._owner.fail_read
        view = memoryview(self.memory)
        starts, counts = runs(pfns)
        views = [
            view[int(start) * PAGE : int(start + count) * PAGE]
            for start, count in zip(starts, counts, strict=True)
        ]
        return Pages(PageBatch(pfns, np.zeros(len(pfns), np.uint8)), views)

    def closing(self) -> Iterator[Record]:
        yield OnlineVcpus(0, (0,))
        yield UnmappedPfns(np.arange(0, 16, dtype=np.uint64))
        yield VcpuContext(0, VcpuContextKind.BASIC, PV64_CONTEXT)
        yield SharedInfo(bytes(PAGE))
        yield End()

    def suspend(self) -> None:
        self.ended.append("suspend")

    def resume(self) -> None:
        self.ended.append("resume")

    def relinquish(self) -> None:
        self.ended.append("relinquish")
        self._owner.guests.pop(self._guest.uuid)

    def hold(self, reason: str) -> None:
        self.ended.append("hold")

    def cancel(self) -> None:
        self.ended.append("cancel")
        self._owner.may_read.set()


class FakeHypervisor:
    """Guests in a table; every call is noted in `calls`."""

    name = "fake"

    def __init__(self) -> None:
        self.guests: dict[str, DomainSummary] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.next_domid = 1
        self.may_read = threading.Event()
        self.may_read.set()
        self.reading = threading.Event()
        self.fail_read: Exception | None = None
        self.sources: list[FakeSource] = []

    def capabilities(self) -> Capabilities:
        return Capabilities(
            guest_types=frozenset(GuestType),
            live_save=frozenset(GuestType),
            runs_guests=True,
            free_memory_bytes=16384 << 20,
            total_memory_bytes=20480 << 20,
        )

    def domains(self) -> list[DomainSummary]:
        return sorted(self.guests.values(), key=lambda guest: guest.domid or 0)

    def find(self, name_or_id: str) -> Domain:
        for guest in self.domains():
            if name_or_id in (guest.name, str(guest.domid), guest.uuid):
                return Domain(domid=guest.domid or 0, uuid=guest.uuid, name=guest.name)
        raise DomainNotFound(name_or_id)

    def add(self, config: DomainConfig, state: DomainState = DomainState.PAUSED) -> Domain:
        if any(config.name == guest.name for guest in self.guests.values()):
            raise DomainExists(config.name, f"VM name '{config.name}' already exists")
        domid, self.next_domid = self.next_domid, self.next_domid + 1
        self.guests[config.uuid] = DomainSummary(
            domid=domid,
            uuid=config.uuid,
            name=config.name,
            state=state,
            memory_mib=config.memory_mib,
            maxmem_mib=config.maxmem_mib,
            vcpus=config.vcpus,
            online_vcpus=config.vcpus,
            cpu_time_s=1.5,
            start_time_s=time.time(),
            config=config,
        )
        return Domain(domid=domid, uuid=config.uuid, name=config.name)

    def create(self, config: DomainConfig) -> Domain:
        self.calls.append(("create", config.name))
        return self.add(config)

    @contextmanager
    def restore(self, config: DomainConfig, *, migration_id: str = "") -> Iterator[FakeRestore]:
        yield FakeRestore(self, config)

    def place(self, config: DomainConfig) -> Placement:
        return Placement()

    @contextmanager
    def save(
        self, domain: Domain, *, migration_id: str = "", live: bool = False
    ) -> Iterator[FakeSource]:
        source = FakeSource(self, self.guests[domain.uuid])
        self.sources.append(source)
        yield source

    def _set(self, domain: Domain, call: str, **values: Any) -> None:
        self.calls.append((call, domain.name, *values.values()))
        self.guests[domain.uuid] = replace(self.guests[domain.uuid], **values)

    def pause(self, domain: Domain) -> None:
        self._set(domain, "pause", state=DomainState.PAUSED)

    def unpause(self, domain: Domain) -> None:
        self._set(domain, "unpause", state=DomainState.BLOCKED)

    def destroy(self, domain: Domain) -> None:
        self.calls.append(("destroy", domain.name))
        del self.guests[domain.uuid]

    def shutdown(self, domain: Domain, reason: str) -> None:
        self.calls.append(("shutdown", domain.name, reason))
        del self.guests[domain.uuid]

    def rename(self, domain: Domain, name: str) -> Domain:
        self._set(domain, "rename", name=name)
        return replace(domain, name=name)

    def set_memory(self, domain: Domain, mib: int) -> None:
        self._set(domain, "set_memory", memory_mib=mib)

    def hypervisor_log(self) -> str:
        return "(XEN) stub console ring\n"

    def close(self) -> None:
        self.calls.append(("close",))


class FakeRestore:
    """Takes everything in and remembers the pages' checksums by pfn."""

    def __init__(self, owner: FakeHypervisor, config: DomainConfig) -> None:
        self._owner = owner
        self._config = config
        self.records: list[str] = []
        self.memory = np.zeros(NR_PAGES * PAGE, np.uint8)
        owner.restored = self  # type: ignore[attr-defined]  # for the test to look at

    def populate(self, batch: PageBatch) -> list[memoryview]:
        view = memoryview(self.memory)
        starts, counts = runs(batch.with_data())
        return [
            view[int(start) * PAGE : int(start + count) * PAGE]
            for start, count in zip(starts, counts, strict=True)
        ]

    def apply(self, record: Record) -> None:
        self.records.append(type(record).__name__)

    def complete(self) -> Domain:
        return self._owner.add(self._config)

    def keep(self, reason: str) -> str:
        raise AssertionError("a file is never kept twice")

    def rest(self) -> Any:
        raise AssertionError("a file is never kept twice")

    def cancel(self) -> None:
        pass


def guest_config(name: str = "web1", **values: str) -> DomainConfig:
    """Return a PV guest's configuration; its uuid is made of the name."""
    uuid = "".join(f"{ord(char):02x}" for char in name)[:32].ljust(32, "0")
    tree = {
        "name": name,
        "uuid": f"{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}",
        "memory": "8",
        "vcpus": "1",
        **values,
    }
    return DomainConfig.from_sxp(
        [
            "domain",
            *([key, value] for key, value in tree.items()),
            ["image", ["linux", ["kernel", "/boot/vmlinuz"]]],
            ["device", ["vif", ["bridge", "xenbr0"], ["mac", "00:16:3e:11:22:33"]]],
            ["device", ["vbd", ["dev", "xvda:disk"], ["uname", "phy:vg/a"], ["mode", "w"]]],
        ]
    )
