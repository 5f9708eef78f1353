"""One test guest that has a process, as the store sees it.

What has to last with the guest and no longer (its config, domid, note) is a blob that its process
keeps.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from xendpy.errors import DomainStateError
from xendpy.guest.domain import DomainConfig, DomainState
from xendpy.guest.memory import GuestMemory
from xendpy.guest.pages import PAGE_SIZE, DirtyBitmap, Types
from xendpy.hypervisor import testguest_layout as layout
from xendpy.hypervisor import testguest_link as link
from xendpy.hypervisor import testguest_process as process
from xendpy.hypervisor import testguest_records
from xendpy.hypervisor.testguest_ticker import fence
from xendpy.stream.records import Record

# Why a guest has ended, by what it was asked for.
ENDS = {"poweroff": "poweroff", "halt": "poweroff", "reboot": "reboot", "crash": "crash"}


class TestGuest:
    """One test guest that has a process; hypervisor.runner.Running.

    The process may end by itself: then `state` is CRASHED, and all but `destroy` raises
    HypervisorError or works on the memory as it was.
    """

    __test__ = False  # no test case, whatever pytest makes of the name

    def __init__(self, connection: link.GuestLink) -> None:
        """Take over the process at the other end, and what it keeps."""
        kept = json.loads(_read_all(connection.kept))
        self._link = connection
        self._config = DomainConfig.parse(kept["config"].encode("latin-1"))
        self._domid = int(kept["domid"])
        self._start_time_s = float(kept["start_time_s"])
        suspended = connection.state == process.SUSPENDED
        self._note = str(kept["note"]) if suspended else ""
        self._end_reason = ""
        self._memory = GuestMemory(os.dup(connection.ram))
        self._ram: layout.Ram = self._memory.pages[: self._memory.nr_pages]
        self._counters = layout.view_state(self._ram)
        self._types = layout.read_layout(self._ram).types()
        self._dirty: NDArray[np.uint8] = np.frombuffer(mmap.mmap(connection.dirty, 0), np.uint8)

    @property
    def domid(self) -> int:
        return self._domid

    @property
    def config(self) -> DomainConfig:
        return self._config

    @property
    def state(self) -> DomainState:
        match self.end_reason:
            case "crash":
                return DomainState.CRASHED
            case "poweroff" | "reboot":
                return DomainState.SHUTDOWN
        match self._link.state:
            case process.SUSPENDED:
                return DomainState.SUSPENDED
            case process.PAUSED:
                return DomainState.PAUSED
        # It sleeps from tick to tick, unless it was told to dirty memory.
        busy = self._counters["dirty_rate"] > 0
        return DomainState.RUNNING if busy else DomainState.BLOCKED

    @property
    def exit_fd(self) -> int:
        return self._link.pidfd

    @property
    def end_reason(self) -> str:
        return self._end_reason or ("" if self._link.alive else "crash")

    @property
    def cpu_time_s(self) -> float:
        return float(self._counters["cpu_s"])

    @property
    def start_time_s(self) -> float:
        return self._start_time_s

    @property
    def note(self) -> str:
        return self._note

    @property
    def memory(self) -> GuestMemory:
        return self._memory

    @property
    def types(self) -> Types:
        return self._types

    def opening(self) -> Iterator[Record]:
        """Yield what a stream says before memory."""
        return testguest_records.opening(self._ram)

    def closing(self) -> Iterator[Record]:
        """Yield what a stream says after memory, End included; the guest is suspended."""
        return testguest_records.closing(self._ram)

    def track_dirty(self) -> None:
        """Start recording writes. The guest always marks; this forgets the marks so far."""
        self._dirty[:] = 0
        fence()

    def take_dirty(self) -> DirtyBitmap:
        """Return the frames written since the last call, and forget them.

        Loses nothing if the pages are read after this returns: see Ticker. Only marks that were
        seen are cleared, and the fence keeps reads of pages behind the clearing.
        """
        seen = np.flatnonzero(self._dirty.copy())
        self._dirty[seen] = 0
        fence()
        return DirtyBitmap.of(len(self._dirty), seen.astype(np.uint64))

    def pause(self) -> None:
        self._link.command("pause")

    def unpause(self) -> None:
        self._link.command("unpause")

    def suspend(self) -> None:
        """Stop the guest; it takes the guest some milliseconds at most."""
        self._link.command("suspend")

    def resume(self) -> None:
        """Let the guest go on, running or paused as it was before `suspend`."""
        self._link.command("resume")
        if self._note:
            self._note = ""
            self._keep()

    def hold(self, reason: str) -> None:
        """Keep the guest suspended for `reason`, also past this daemon's end."""
        self._link.command("suspend")
        self._note = reason
        self._keep()

    def rename(self, name: str) -> None:
        self._config = self._config.renamed(name)
        self._keep()

    def set_aside(self, name: str, uuid: str) -> None:
        """Take another name and uuid, after the end; nothing of it outlives this daemon."""
        self._config = self._config.with_values(name=name, uuid=uuid)

    def shutdown(self, reason: str) -> None:
        """End the guest as `reason` says; its memory stays to be looked at.

        Raises:
            DomainStateError: it is suspended.
            ValueError: no such reason.
        """
        if self.state is DomainState.SUSPENDED:
            raise DomainStateError(
                self._config.name, "the guest is suspended", actual=self.state.name
            )
        if reason == "suspend":
            self.suspend()
        elif reason not in ENDS:
            raise ValueError(f"no way to shut down: {reason}")
        else:
            self._end_reason = self.end_reason or ENDS[reason]
            self._link.kill()

    def console(self) -> bytes:
        """Return the guest's log, as far back as its ring goes."""
        return self.console_from(0)[0]

    def console_from(self, offset: int) -> tuple[bytes, int]:
        """Return the log from byte `offset` of all ever logged, and the offset to ask for next."""
        return layout.read_log(self._ram, offset) if len(self._ram) else (b"", offset)

    def check(self) -> list[str]:
        """Return what the guest finds wrong with its memory, a sentence each; [] = whole."""
        return [str(fault) for fault in self._link.command("check")["faults"]]

    def destroy(self) -> None:
        """End the process and free its memory. May be called again."""
        self._end_reason = self._end_reason or "poweroff"
        self._link.end()
        self._let_go()

    def close(self) -> None:
        """Let go of the guest, which lives on."""
        self._link.close()
        self._let_go()

    def _let_go(self) -> None:
        """Drop every view of the memory; what is left answers as the guest last stood."""
        self._counters = self._counters.copy()
        self._ram = np.zeros((0, PAGE_SIZE), np.uint8)
        self._dirty = np.zeros(0, np.uint8)
        self._memory.close()

    def _keep(self) -> None:
        self._link.keep(encode_kept(self._config, self._domid, self._start_time_s, self._note))


def encode_kept(config: DomainConfig, domid: int, start_time_s: float, note: str) -> bytes:
    """Return the blob that the process of a guest keeps."""
    kept = {
        "config": config.encode().decode("latin-1"),
        "domid": domid,
        "start_time_s": start_time_s,
        "note": note,
    }
    return json.dumps(kept).encode()


def _read_all(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
