"""What a running migration shows, in words and numbers: from the structs of `xendpy.migration`.

Pure: no clock, no terminal, no daemon. Phases carry the names of Clark et al., "Live Migration of
Virtual Machines" (NSDI 2005), stages 0 to 5; the JSON those of QEMU's query-migrate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MIB: Final = 1 << 20
NOT_CONVERGING: Final = "not converging"
# The rate of the first moments is that of empty socket buffers: no estimate before this.
FIRST_ESTIMATE_S: Final = 1.0

ENDED: Final = ("done", "failed", "aborted")  # states
_LET_GO: Final = ("released", "moved", "closed")  # steps of a hand-over that is not over yet

_PHASES: Final = {
    "connecting": "pre-migration",
    "negotiating": "reservation",
    "precopy": "iterative pre-copy",
    "stop and copy": "stop-and-copy",
    "completing": "commitment",
    "done": "activation",
}
_QEMU_STATUS: Final = {
    "connecting": "setup",
    "negotiating": "setup",
    "precopy": "active",
    "stop and copy": "device",
    "completing": "device",
    "done": "completed",
    "failed": "failed",
    "aborted": "cancelled",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One look at a migration; bytes, bytes per second and seconds."""

    id: str
    name: str
    peer: str
    state: str
    reason: str
    iteration: int
    page_size: int
    sent_bytes: int
    remaining_bytes: int | None  # None: only the toolstack knows
    total_bytes: int
    pages: int
    rate: float
    average_rate: float
    dirty_rate: float
    elapsed_s: float
    setup_s: float
    expected_downtime_s: float | None
    converged: bool | None
    ended: bool
    downtime: Mapping[str, Any] | None
    rounds: tuple[Mapping[str, Any], ...]
    handover: Mapping[str, Any]

    @classmethod
    def of(cls, struct: Mapping[str, Any]) -> View:
        """Return the view of a struct as `xendpy.migration` answers it."""
        page_size = int(struct["page_size"])
        expected, remaining = struct["expected_downtime_s"], struct["remaining_pages"]
        return cls(
            id=str(struct["id"]),
            name=str(struct["domain"]),
            peer=str(struct["peer"]),
            state=str(struct["state"]),
            reason=str(struct["reason"]),
            iteration=int(struct["iteration"]),
            page_size=page_size,
            sent_bytes=int(struct["bytes"]),
            remaining_bytes=None if remaining is None else int(remaining) * page_size,
            total_bytes=int(struct["total_pages"]) * page_size,
            pages=int(struct["pages"]),
            rate=float(struct["current_rate"]),
            average_rate=float(struct["rate"]),
            dirty_rate=float(struct["dirty_pages_per_s"]) * page_size,
            elapsed_s=float(struct["elapsed"]),
            setup_s=float(struct["setup_s"]),
            expected_downtime_s=None if expected is None else float(expected),
            converged=struct["converged"],
            ended=bool(struct["ended"]),
            downtime=struct["downtime"],
            rounds=tuple(struct["rounds"]),
            handover=struct["handover"] or {},
        )

    @property
    def phase(self) -> str:
        """The stage, in the paper's words; an ended one by how it ended."""
        if self.state == "completing" and self.handover.get("step") in _LET_GO:
            return "activation"
        return _PHASES.get(self.state, self.state)

    @property
    def dirty_rate_known(self) -> bool:
        """Whether an iteration has ended of which is known what the guest wrote meanwhile."""
        return any(not item["last"] and item["dirtied_pages"] is not None for item in self.rounds)

    @property
    def in_doubt(self) -> bool:
        """Whether it is over for this command, and nobody knows yet whose guest it is."""
        return bool(self.handover.get("in_doubt")) and self.state in ENDED

    @property
    def moved(self) -> bool:
        """Whether the guest is the target's; the journal knows better than the last state."""
        settled = "moved" in (self.handover.get("step"), self.handover.get("result"))
        return self.state == "done" or settled


class Estimate:
    """The time left, which never grows; a guest that outruns the link is said to.

    One object per migration, asked with each new view.
    """

    def __init__(self) -> None:
        self._left_s: float | None = None
        self._at_s = 0.0

    def left(self, view: View) -> float | str | None:
        """Return seconds left, NOT_CONVERGING, or None while nobody can know."""
        if view.state != "precopy" or view.elapsed_s - view.setup_s < FIRST_ESTIMATE_S:
            return self._left_s
        if view.dirty_rate and view.rate and view.dirty_rate >= view.rate:
            return NOT_CONVERGING
        if view.remaining_bytes is None:
            return None
        if not view.rate:
            return self._left_s
        # What is written meanwhile must be sent as well, and so on: a geometric series.
        seconds = view.remaining_bytes / view.rate / (1 - view.dirty_rate / view.rate)
        self._left_s = seconds if self._left_s is None else min(self._left_s, seconds)
        return self._left_s


def size(count: float) -> str:
    """Return bytes for people: `512.0 MiB`."""
    return f"{count / 1024 / MIB:.2f} GiB" if count >= 1024 * MIB else f"{count / MIB:.1f} MiB"


def speed(rate: float) -> str:
    return f"{rate / MIB:.1f} MiB/s"


def span(seconds: float) -> str:
    """Return seconds for people: `340 ms`, `12.3 s`, `4 min 05 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def time_left(left: float | str | None) -> str:
    """Return an estimate as it is shown."""
    if left is None:
        return "ETA -"
    return left if isinstance(left, str) else f"ETA {span(left)}"


def line(view: View, left: float | str | None) -> str:
    """Return the line of --progress, in the manner of Proxmox's log."""
    text = (
        f"migration {view.phase}, iteration {view.iteration + 1}, transferred"
        f" {size(view.sent_bytes)} of {size(view.total_bytes)} VM-state, {speed(view.rate)}"
    )
    if view.dirty_rate_known:
        text += f", dirty rate {speed(view.dirty_rate)}"
    if view.state == "precopy" and view.remaining_bytes is not None:
        text += f", remaining {size(view.remaining_bytes)}, {time_left(left)}"
        if view.expected_downtime_s is not None:
            text += f", expected downtime {span(view.expected_downtime_s)}"
    return text


def qemu(view: View) -> dict[str, Any]:
    """Return the migration with the names of QEMU's query-migrate; times in ms, mbps = Mbit/s."""
    page = view.page_size
    ram = {
        "transferred": view.sent_bytes,
        "remaining": view.remaining_bytes,  # null: only the toolstack knows
        "total": view.total_bytes,
        "normal": view.pages,
        "normal-bytes": view.pages * page,
        "mbps": round(view.rate * 8 / 1e6, 3),
        "dirty-pages-rate": round(view.dirty_rate / page),
        "dirty-sync-count": view.iteration + (1 if view.rounds else 0),
        "page-size": page,
        "pages-per-second": round(view.rate / page),
    }
    shown: dict[str, Any] = {
        "status": "failed" if view.in_doubt else _QEMU_STATUS.get(view.state, view.state),
        "total-time": round(view.elapsed_s * 1000),
        "setup-time": round(view.setup_s * 1000),
        "ram": ram,
    }
    if view.expected_downtime_s is not None:
        shown["expected-downtime"] = round(view.expected_downtime_s * 1000)
    if view.downtime is not None:
        shown["downtime"] = round(float(view.downtime["total_s"]) * 1000)
    if view.reason:
        shown["error-desc"] = view.reason
    return shown


_PARTS: Final = (
    ("suspend", "suspend_s"),
    ("last iteration", "last_iteration_s"),
    ("state and hand-over", "vcpu_state_s"),
    ("resume there", "resume_s"),
)


def downtime(view: View) -> str:
    """Return the downtime with its parts; empty if it is not known."""
    if view.downtime is None:
        return ""
    known = [(name, view.downtime[key]) for name, key in _PARTS if view.downtime[key] is not None]
    parts = " + ".join(f"{name} {span(seconds)}" for name, seconds in known)
    return f"{total_downtime(view.downtime)} ({parts})"


def total_downtime(told: Mapping[str, Any]) -> str:
    """Return the downtime of a migration, and whether there was more of it."""
    # Of a last iteration that a toolstack has sent nobody says when it began.
    least = "at least " if told["last_iteration_s"] is None else ""
    return f"{least}{span(told['total_s'])}"


def summary(view: View) -> list[tuple[str, str]]:
    """Return what is told of a migration that is over, as label and text."""
    ratio = view.sent_bytes / view.total_bytes if view.total_bytes else 0.0
    rows = [
        ("total", f"{span(view.elapsed_s)}, {speed(view.average_rate)}"),
        ("downtime", downtime(view)),
        ("sent", f"{size(view.sent_bytes)}, {ratio:.2f} times the guest's memory"),
        ("iterations", f"{len(view.rounds)}{_convergence(view)}" if view.rounds else ""),
    ]
    return [(label, text) for label, text in rows if text]


def _convergence(view: View) -> str:
    return ", without converging" if view.converged is False else ""
