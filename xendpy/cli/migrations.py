"""`xm migrations`: what runs, what ended, what is in doubt; show, cancel, settle."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from xendpy.cli import migrate_progress as progress
from xendpy.cli.migrate import lacks_method
from xendpy.cli.migrate_progress import View
from xendpy.cli.options import CommandFailed, Invocation, UsageError
from xendpy.cli.rpc import Silent
from xendpy.errors import RpcError

COLUMNS: Final = "{:<8} {:<3} {:<24} {:<22} {:<13} {:>5} {:>10} {:>9} {:>8}"
TITLES: Final = ("ID", "Way", "Name", "Peer", "State", "Round", "Pages", "MiB/s", "Time(s)")
ROUND_COLUMNS: Final = "{:>9} {:>10} {:>10} {:>9} {:>9}"

Struct = Mapping[str, Any]


def migrations(xm: Invocation) -> int:
    """List migrations, or do what the first word says to one of them."""
    word, rest = (xm.params[0], xm.params[1:]) if xm.params else ("", ())
    actions: dict[str, tuple[int, Callable[[Invocation, Sequence[str]], int]]] = {
        "": (0, _list),
        "show": (1, _show),
        "cancel": (1, _cancel),
        "settle": (2, _settle),
        "discard": (1, _discard),
    }
    count, action = actions.get(word, (-1, _list))
    if len(rest) != count:
        raise UsageError("Invalid number of arguments" if count >= 0 else f"Unknown: {word}")
    return action(xm, rest)


def _list(xm: Invocation, _: Sequence[str]) -> int:
    rows = xm.call("xendpy.migrations")
    pending = xm.call("xendpy.handovers")
    print(COLUMNS.format(*TITLES))
    closed = xm.call("xendpy.handovers", True)
    for entry in closed:
        if not any(_same(entry, row) for row in rows):
            print(_entry_line(entry))
    settled = {entry["id"]: entry for entry in closed if entry["direction"] == "out"}
    for row in rows:
        if str(row.get("reason")).startswith("in doubt") and row["id"] in settled:
            entry = settled[row["id"]]
            row = {**row, "state": entry["result"], "reason": entry["reason"]}
        print(row_line(row))
        if row.get("reason"):
            print(f"    {row['reason']}")
    doubtful = [entry for entry in pending if entry["in_doubt"]]
    for entry in doubtful:
        print(f"\nIn doubt: {entry['name']}, migration {entry['id'][:8]}")
        for text in advice(entry):
            print(f"  {text}")
    for partial in xm.call("xendpy.partials"):
        how = "as a whole" if partial["name"].endswith(".save") else "in part"
        print(f"\nKept {how}: {partial['name']}, {partial['pages']} pages")
        print(f"  {partial['reason']}")
        print(f"  What there is of it:         xm inspect {partial['path']}")
        print(f"  If its sender still has it:  xm migrations discard {partial['name']}")
    return 0


def _discard(xm: Invocation, words: Sequence[str]) -> int:
    xm.call("xendpy.partial.discard", words[0])
    return 0


def _same(entry: Struct, row: Struct) -> bool:
    return bool((entry["id"], entry["direction"]) == (row["id"], row["direction"]))


def row_line(row: Struct) -> str:
    """Return one line of the table of migrations."""
    return COLUMNS.format(
        row["id"][:8],
        row["direction"],
        row["domain"],
        row["peer"],
        row["state"],
        int(row["iteration"]) + 1 if int(row["pages"]) else "-",
        row["pages"],
        f"{float(row['rate']) / progress.MIB:.1f}",
        f"{float(row['elapsed']):.1f}",
    )


def _entry_line(entry: Struct) -> str:
    state = entry["result"] or entry["step"]
    seconds = float(entry["updated_s"]) - float(entry["created_s"])
    name, peer = entry["name"], entry["peer"]
    line = COLUMNS.format(
        entry["id"][:8], entry["direction"], name, peer, state, "-", "-", "-", f"{seconds:.1f}"
    )
    return line


def advice(entry: Struct) -> Iterator[str]:
    """Yield what is known of a hand-over in doubt, and what its operator can do."""
    name, peer, short = entry["name"], entry["peer"], entry["id"][:8]
    if entry["direction"] == "in":
        yield f"{name} is here, whole and paused; {peer} has not said that it let go of it."
        yield f"Look on {peer} first (`xm list`, `xm migrations`): does {name} run there?"
        gone, there = "keep", "discard"
    else:
        yield f"{name} is suspended here; {peer} may or may not run it."
        if entry["peer_host_id"]:
            yield f"This host keeps asking {peer}, and goes on by itself when it answers."
        yield f"Look on {peer} first (`xm list`): is {name} there?"
        gone, there = "keep", "discard"
    if entry.get("reason"):
        yield f"What happened: {entry['reason'].removeprefix(f'{peer} may or may not run it: ')}"
    yield f"If not, it is this host's:   xm migrations settle {short} {gone}"
    yield f"If so, drop the copy here:   xm migrations settle {short} {there}"


def in_doubt_line(call: Callable[..., Any]) -> str:
    """Return one line about all that is in doubt; empty if nothing is, or nobody knows.

    Raises:
        Silent: the daemon does not answer.
    """
    try:
        entries = [entry for entry in call("xendpy.handovers") if entry["in_doubt"]]
    except Silent:
        raise
    except RpcError:
        return ""
    if not entries:
        return ""
    names = ", ".join(sorted({str(entry["name"]) for entry in entries}))
    return f"In doubt after a migration: {names}; see `xm migrations`"


def moving_line(call: Callable[..., Any]) -> str:
    """Return one line about the guests that move; empty if none does, or nobody knows.

    Raises:
        Silent: the daemon does not answer.
    """
    try:
        rows = [row for row in call("xendpy.migrations") if row["state"] not in progress.ENDED]
    except Silent:
        raise
    except RpcError:
        return ""
    ways = {"in": "coming in", "out": "going out"}
    return ", ".join(
        f"{row['domain'] or '(not named yet)'} {ways[row['direction']]}" for row in rows
    )


def _show(xm: Invocation, words: Sequence[str]) -> int:
    try:
        view = View.of(xm.call("xendpy.migration", words[0]))
    except RpcError as error:
        if lacks_method(error):
            raise
        _show_entry(_entry(xm, words[0], error.reason))
        return 0
    if xm.given("plot"):
        from xendpy.cli.migrate_plot import svg

        Path(xm.options["plot"]).write_text(svg(view), encoding="utf-8")
    for label, text in _heading(view):
        print(f"{label:<11} {text}")
    if view.rounds:
        print(f"\n{ROUND_COLUMNS.format('Iteration', 'Sent', 'Dirtied', 'MiB/s', 'Time(s)')}")
    for item in view.rounds:
        print(_round_line(item, view.page_size))
    for text in advice(view.handover) if view.in_doubt else ():
        print(text)
    return 0


def _heading(view: View) -> list[tuple[str, str]]:
    rows = [
        ("migration", view.id),
        ("guest", f"{view.name}, peer {view.peer}"),
        ("state", f"{view.state}: {view.reason}" if view.reason else view.state),
    ]
    return rows + progress.summary(view)


def _round_line(item: Mapping[str, Any], page_size: int) -> str:
    number = f"{item['index'] + 1}{' last' if item['last'] else ''}"
    rate = item["sent_pages"] * page_size / item["seconds"] / progress.MIB
    return ROUND_COLUMNS.format(
        number,
        item["sent_pages"],
        "-" if item["dirtied_pages"] is None else item["dirtied_pages"],
        f"{rate:.1f}",
        f"{item['seconds']:.3f}",
    )


def _entry(xm: Invocation, prefix: str, otherwise: str) -> Struct:
    """Return the journal's entry whose id begins so; open ones go before closed ones."""
    for closed in (False, True):
        entries = xm.call("xendpy.handovers", True) if closed else xm.call("xendpy.handovers")
        fitting: list[Struct] = [item for item in entries if item["id"].startswith(prefix)]
        if fitting:
            return fitting[-1]
    raise CommandFailed(otherwise)


def _show_entry(entry: Struct) -> None:
    print(f"{'migration':<11} {entry['id']} ({entry['direction']})")
    print(f"{'guest':<11} {entry['name']}, peer {entry['peer']}")
    print(f"{'state':<11} {entry['result'] or entry['step']}")
    if entry["in_doubt"]:
        for text in advice(entry):
            print(text)
    elif entry["reason"]:
        print(f"{'reason':<11} {entry['reason']}")


def _cancel(xm: Invocation, words: Sequence[str]) -> int:
    if not xm.call("xendpy.migration.cancel", words[0]):
        raise CommandFailed(f"migration {words[0]} is being handed over: too late to cancel")
    return 0


def _settle(xm: Invocation, words: Sequence[str]) -> int:
    prefix, choice = words
    if choice not in ("keep", "discard"):
        raise UsageError(f"expected keep or discard, not {choice}")
    entry = _entry(xm, prefix, f"no migration with an id that begins with '{prefix}'")
    if entry["in_doubt"] and not xm.given("yes"):
        for text in advice(entry):
            print(text)
        if sys.stdin.isatty() and not _confirmed(entry, choice):
            print("Nothing was changed.")
            return 1
    settled = xm.call("xendpy.migration.settle", prefix, choice)
    where = "is this host's" if choice == "keep" else f"is {entry['peer']}'s"
    print(f"Settled: {settled['name']} {where}.")
    return 0


def _confirmed(entry: Struct, choice: str) -> bool:
    what = (
        f"{entry['name']} will run here. If {entry['peer']} runs it as well, its disks are lost."
        if choice == "keep"
        else f"This host's copy of {entry['name']} will be destroyed."
    )
    print(f"\n{what}")
    try:
        return input("Really? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
