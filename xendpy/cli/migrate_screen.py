"""How `xm migrate` shows a running migration: drawn, in lines, as JSON, or not at all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from xendpy.cli import migrate_progress as progress
from xendpy.cli.migrate_progress import Estimate, View

if TYPE_CHECKING:
    from rich.table import Table

LINE_EVERY_S = 1.0


class Screen(Protocol):
    """What draws; `show` gets every look, `end` the last one, once."""

    def show(self, view: View, now_s: float) -> None: ...

    def say(self, text: str) -> None: ...

    def end(self, view: View) -> None: ...


class Silent:
    """Shows nothing, as xm did."""

    def show(self, view: View, now_s: float) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def end(self, view: View) -> None:
        pass


class Lines:
    """A line a second, and one for each new phase."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._estimate = Estimate()
        self._next_s = 0.0
        self._phase = ""

    def show(self, view: View, now_s: float) -> None:
        left = self._estimate.left(view)
        if view.ended or (now_s < self._next_s and view.phase == self._phase):
            return
        self._next_s, self._phase = now_s + LINE_EVERY_S, view.phase
        self.say(progress.line(view, left))

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def end(self, view: View) -> None:
        for label, text in progress.summary(view) if view.moved else ():
            self.say(f"{label}: {text}")


class JsonLines:
    """An object a second and for each new status; the last one says how it ended."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._next_s = 0.0
        self._status = ""

    def show(self, view: View, now_s: float) -> None:
        struct = progress.qemu(view)
        if view.ended or (now_s < self._next_s and struct["status"] == self._status):
            return
        self._next_s, self._status = now_s + LINE_EVERY_S, struct["status"]
        self._print(struct)

    def say(self, text: str) -> None:
        pass

    def end(self, view: View) -> None:
        self._print(progress.qemu(view))

    def _print(self, struct: dict[str, Any]) -> None:
        print(json.dumps(struct), file=self._out, flush=True)


class Drawn:
    """A few lines of the terminal that are drawn anew at each look."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=out, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._estimate = Estimate()
        self._note = ""
        self._live.start()

    def show(self, view: View, now_s: float) -> None:
        self._live.update(self._table(view), refresh=True)

    def say(self, text: str) -> None:
        self._note = text

    def end(self, view: View) -> None:
        self._live.stop()
        if not view.moved:
            return
        from rich.markup import escape

        name, peer = escape(view.name), escape(view.peer)
        self._console.print(f"[bold]{name}[/bold] runs on [bold]{peer}[/bold]")
        for label, text in progress.summary(view):
            self._console.print(f"  {label:<11} {text}", soft_wrap=True)

    def close(self) -> None:
        """Give the terminal back, whatever happened."""
        self._live.stop()

    def _table(self, view: View) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        left = self._estimate.left(view)
        table = Table.grid(padding=(0, 1))
        done = max(0, view.total_bytes - (view.remaining_bytes or 0))
        bar = ProgressBar(total=max(1, view.total_bytes), completed=done, width=30)
        if view.iteration or view.state != "precopy":
            # Later iterations resend what was written: a bar of the whole would run backwards.
            bar = ProgressBar(total=None, width=30, pulse=True)
        head = f"{view.name} → {view.peer}"
        table.add_row(Text(head, style="bold"), bar, Text(view.phase, style="cyan"))
        sent = f"{progress.size(view.sent_bytes)} of {progress.size(view.total_bytes)}"
        rate = f"{progress.speed(view.rate)}"
        table.add_row(f"iteration {view.iteration + 1}", sent, rate)
        dirty = f"dirty rate {progress.speed(view.dirty_rate)}" if view.dirty_rate_known else ""
        if view.remaining_bytes is None:
            table.add_row(dirty, "remaining: xl does not say", "")
        else:
            table.add_row(dirty, f"remaining {progress.size(view.remaining_bytes)}", _left(left))
        expected = view.expected_downtime_s
        down = "" if expected is None else f"expected downtime {progress.span(expected)}"
        table.add_row(down, f"elapsed {progress.span(view.elapsed_s)}", "")
        if self._note:
            table.add_row(Text(self._note, style="yellow"), "", "")
        return table


def _left(left: float | str | None) -> str:
    return progress.time_left(left)
