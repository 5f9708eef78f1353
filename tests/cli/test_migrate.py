"""What `xm migrate` and `xm migrations` say, against a daemon that answers by a table."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_xend import FakeXend, fault
from tests.peers.terminal import on_terminal
from xendpy.cli import migrate_progress as progress
from xendpy.cli import xm
from xendpy.cli.migrate_plot import svg
from xendpy.cli.migrate_progress import NOT_CONVERGING, Estimate, View

ID = "4270acfcf27eb7b960f6843971e13648"
MIB = 1 << 20


def struct(state: str = "precopy", **values: Any) -> dict[str, Any]:
    """Return a migration as `xendpy.migration` answers it."""
    rounds = [
        {"index": 0, "sent_pages": 65536, "dirtied_pages": 256, "seconds": 1.0, "last": False},
        {"index": 1, "sent_pages": 256, "dirtied_pages": 0, "seconds": 0.01, "last": True},
    ]
    parts = {"suspend_s": 0.001, "last_iteration_s": 0.01, "vcpu_state_s": 0.02, "resume_s": None}
    return {
        "id": ID, "direction": "out", "domain": "web1", "uuid": "u", "peer": "host-b",
        "state": state, "iteration": 1, "pages": "65792", "total_pages": "65536",
        "bytes": str(257 * MIB), "rate": str(100 * MIB), "started": 0.0, "elapsed": 2.5,
        "reason": "", "page_size": 4096, "protocol": "xendpy", "remaining_pages": "25600",
        "dirty_pages_per_s": 2560.0, "expected_downtime_s": 0.115,
        "current_rate": 100.0 * MIB, "setup_s": 0.1, "converged": True,
        "downtime": {**parts, "total_s": 0.031}, "rounds": rounds,
        "ended": state in ("done", "failed", "aborted"), "handover": None,
        **values,
    }  # fmt: skip


def entry(step: str, **values: Any) -> dict[str, Any]:
    """Return a journal entry as `xendpy.handovers` answers it."""
    return {
        "id": ID, "direction": "out", "step": step, "name": "web1", "uuid": "u",
        "peer": "host-b", "peer_host_id": "", "created_s": 1.0, "updated_s": 2.0,
        "reason": "silence", "result": "", "in_doubt": step in ("sent", "released", "received"),
        **values,
    }  # fmt: skip


Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(argv: str, replies: dict[str, Any], calls: list[Any] | None = None) -> int:
        with FakeXend(tmp_path / "var/run/xend/xmlrpc.sock", replies) as fake:
            code = xm.main(["--root", str(tmp_path), *argv.split()])
        if calls is not None:
            calls += fake.calls
        return code

    return run


def test_another_xend_is_asked_as_xm_does(run: Run) -> None:
    calls: list[Any] = []
    argv = "migrate web1 host-b -s -c -n=1 -p=8003 --live"
    assert run(argv, {"xend.domain.migrate": None}, calls) == 0
    assert calls[-1] == ("xend.domain.migrate", ("web1", "host-b", 1, 8003, 1, 1, 1))


@pytest.mark.parametrize("option", ["--max-downtime=9", "--json", "--dry-run", "--timeout=3"])
def test_another_xend_knows_none_of_ours(
    run: Run, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    assert run(f"migrate web1 host-b {option}", {"xend.domain.migrate": None}, calls) == 1
    name = option.partition("=")[0]
    assert capsys.readouterr().err == f"Error: this xend does not know {name}\n"
    assert all(method != "xend.domain.migrate" for method, _ in calls)


def test_a_fault_of_the_daemon_starts_no_second_migration(run: Run) -> None:
    calls: list[Any] = []
    replies = {"xendpy.migrate": fault(1, "internal error"), "xend.domain.migrate": None}
    assert run("migrate web1 host-b", replies, calls) == 1
    assert [method for method, _ in calls] == ["xendpy.migrate"]


def test_options_cross_in_the_daemon_s_units(run: Run) -> None:
    calls: list[Any] = []
    replies = {"xendpy.migrate": ID, "xendpy.migration": struct("done")}
    argv = (
        "migrate -l --max-downtime 50 --max-iterations 7 --on-no-convergence cancel --timeout 60"
        " --bandwidth 1.5 --peer-release 4.1 --peer-tools 32 --lossy --compress web1"
        " host-b"
    )
    assert run(argv, replies, calls) == 0
    _, (name, request, options) = calls[0]
    assert (name, request["destination"], request["live"]) == ("web1", "host-b", True)
    assert options == {
        "max_downtime_s": 0.05,
        "max_iterations": 7,
        "on_no_convergence": "cancel",
        "timeout_s": 60.0,
        "bandwidth": 3 << 19,
        "release": "4.1",
        "tools": 32,
        "compress": True,
        "lossy": True,
    }


ENDS = [
    ("done", struct("done"), 0, ""),
    ("settled", struct("failed", handover=entry("closed", result="moved")), 0, ""),
    ("failed", struct("failed", reason="no room"), 1, "Error: no room\nweb1 goes on here.\n"),
    (
        "limits",
        struct("aborted", reason="cancelled by the limits: no convergence"),
        1,
        "Error: no convergence\nweb1 goes on here.\n",
    ),
    (
        "cancelled",
        struct("aborted", reason="cancelled by the operator"),
        130,
        "Migration 4270acfc cancelled: web1 goes on here.\n",
    ),
    ("doubt", struct("failed", handover=entry("sent")), 4, None),
]


@pytest.mark.parametrize(("how", "last", "code", "said"), ENDS, ids=[row[0] for row in ENDS])
def test_how_it_ended_is_the_exit_code(
    run: Run,
    how: str,
    last: dict[str, Any],
    code: int,
    said: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("migrate web1 host-b", {"xendpy.migrate": ID, "xendpy.migration": last}) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    if said is None:
        assert "xm migrations settle 4270acfc keep" in captured.err
    else:
        assert captured.err == said


def test_json_lines_are_objects(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    looks = iter([struct(), struct(), struct("done")])
    replies = {"xendpy.migrate": ID, "xendpy.migration": lambda _: next(looks)}
    assert run("migrate --json web1 host-b", replies) == 0
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["status"], last["status"], last["downtime"]) == ("active", "completed", 31)
    assert first["ram"] == {
        "transferred": 257 * MIB,
        "remaining": 100 * MIB,
        "total": 256 * MIB,
        "normal": 65792,
        "normal-bytes": 257 * MIB,
        "mbps": 838.861,
        "dirty-pages-rate": 2560,
        "dirty-sync-count": 2,
        "page-size": 4096,
        "pages-per-second": 25600,
    }


PHASES = [
    ("connecting", None, "pre-migration"),
    ("negotiating", None, "reservation"),
    ("precopy", None, "iterative pre-copy"),
    ("stop and copy", None, "stop-and-copy"),
    ("completing", entry("sending"), "commitment"),
    ("completing", entry("released"), "activation"),
    ("completing", entry("closed", result="moved"), "activation"),
    ("done", None, "activation"),
    ("failed", None, "failed"),
]


@pytest.mark.parametrize(("state", "handover", "phase"), PHASES)
def test_phases_have_the_paper_s_names(
    state: str, handover: dict[str, Any] | None, phase: str
) -> None:
    assert View.of(struct(state, handover=handover)).phase == phase


def test_the_estimate_never_runs_backwards() -> None:
    estimate = Estimate()
    view = View.of(struct(dirty_pages_per_s=0.0))
    shown = []
    for remaining, rate in ((200, 100), (150, 20), (90, 100), (120, 50), (10, 100)):
        look = replace(view, remaining_bytes=remaining * MIB, rate=rate * MIB)
        shown.append(estimate.left(look))
    assert shown == pytest.approx([2.0, 2.0, 0.9, 0.9, 0.1])


def test_a_guest_that_outruns_the_link_is_said_to() -> None:
    view = View.of(struct(dirty_pages_per_s=30000.0))
    assert Estimate().left(view) == NOT_CONVERGING
    assert progress.line(view, NOT_CONVERGING).endswith(
        "remaining 100.0 MiB, not converging, expected downtime 115 ms"
    )


def test_what_only_a_toolstack_knows_is_not_told(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = [
        {"index": 0, "sent_pages": 65536, "dirtied_pages": None, "seconds": 1.0, "last": False}
    ]
    values = {"rounds": rounds, "remaining_pages": None, "expected_downtime_s": None}
    told = struct(dirty_pages_per_s=0.0, **values)
    view = View.of(told)
    assert Estimate().left(view) is None
    assert progress.line(view, None).endswith("of 256.0 MiB VM-state, 100.0 MiB/s")
    assert progress.qemu(view)["ram"]["remaining"] is None
    assert run(f"migrations show {ID} --plot /dev/null", {"xendpy.migration": told}) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "1",
        "65536",
        "-",
        "256.0",
        "1.000",
    ]


def test_the_first_moments_give_no_estimate() -> None:
    assert Estimate().left(View.of(struct(elapsed=0.9))) is None


def test_the_list_adds_what_an_earlier_daemon_saw(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    old = entry("closed", id="aa" * 16, result="moved", created_s=-1000.0, updated_s=-990.0)
    replies = {
        "xendpy.migrations": [struct("done")],
        "xendpy.handovers": lambda closed=False: [old] if closed else [entry("released")],
        "xendpy.partials": [],
    }
    assert run("migrations", replies) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in lines[1:3]] == [
        ["aaaaaaaa", "out", "web1", "host-b", "moved"],
        ["4270acfc", "out", "web1", "host-b", "done"],
    ]
    assert lines[4] == "In doubt: web1, migration 4270acfc"
    assert lines[-1].endswith("xm migrations settle 4270acfc discard")


def test_the_list_ends_with_what_came_in_part(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = {
        "name": "web1.partial",
        "path": "/var/lib/xend/store/partial/web1.partial",
        "pages": "4711",
        "reason": "the stream ends after 3 of 8 bytes",
    }
    replies = {
        "xendpy.migrations": [],
        "xendpy.handovers": lambda closed=False: [],
        "xendpy.partials": [partial],
    }
    assert run("migrations", replies) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "",
        "Kept in part: web1.partial, 4711 pages",
        "  the stream ends after 3 of 8 bytes",
        "  What there is of it:         xm inspect /var/lib/xend/store/partial/web1.partial",
        "  If its sender still has it:  xm migrations discard web1.partial",
    ]


def test_what_came_as_a_whole_and_is_not_here_is_listed_as_that(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/var/lib/xend/incoming/web1.save"
    kept = {"name": "web1.save", "path": path, "pages": "4711", "reason": f"xm restore {path}"}
    replies = {
        "xendpy.migrations": [],
        "xendpy.handovers": lambda closed=False: [],
        "xendpy.partials": [kept],
    }
    assert run("migrations", replies) == 0
    lines = capsys.readouterr().out.splitlines()[2:4]
    assert lines == ["Kept as a whole: web1.save, 4711 pages", f"  xm restore {path}"]


def test_what_came_in_part_is_removed_by_name(run: Run) -> None:
    asked: list[str] = []
    replies = {"xendpy.partial.discard": asked.append}
    assert run("migrations discard web1.partial", replies) == 0
    assert asked == ["web1.partial"]


@pytest.mark.parametrize(
    "argv", ["show", "cancel a b", "discard", "settle a", "bogus", "settle a maybe"]
)
def test_wrong_words_are_refused(run: Run, argv: str) -> None:
    assert run(f"migrations {argv}", {}) == 1


def test_answer_that_took_longer_than_the_connection_lasts(tmp_path: Path) -> None:
    replies = {
        "xendpy.handovers": lambda closed=False: [] if closed else [entry("released")],
        "xendpy.migration.settle": {"name": "web1"},
    }
    words = ("--root", str(tmp_path), "migrations", "settle", ID, "keep")
    with (
        FakeXend(tmp_path / "var/run/xend/xmlrpc.sock", replies) as fake,
        on_terminal(sys.executable, "-m", "xendpy.cli.xm", *words) as (terminal, process),
    ):
        terminal.read_until("Really? [y/N] ")
        fake.hang_up()
        terminal.type(b"y\n")
        terminal.read_until("")
        assert process.wait(120) == 0
    assert "Settled: web1 is this host's." in terminal.shown
    assert fake.calls[-1] == ("xendpy.migration.settle", (ID, "keep"))


def test_too_late_to_cancel(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("migrations cancel 4270", {"xendpy.migration.cancel": False}) == 1
    assert "too late to cancel" in capsys.readouterr().err


def test_force_crosses_only_if_it_was_given(run: Run, tmp_path: Path) -> None:
    for option, more in (("", ()), (" --force", (True,))):
        calls: list[Any] = []
        run(f"resume web1{option}", {"xend.domain.resume": None}, calls)
        assert calls == [("xend.domain.resume", ("web1", False, *more))]


def test_the_picture_is_xml_with_a_bar_for_each_count() -> None:
    root = ElementTree.fromstring(svg(View.of(struct("done", domain="<web&1>"))))
    titles = [item.text for item in root.iter("{http://www.w3.org/2000/svg}title")]
    pages = [text for text in titles if text and text.endswith("pages")]
    assert pages == ["65,536 pages", "256 pages", "256 pages"]
    assert "25.0 MiB/s" not in titles and "256.0 MiB/s" in titles


def test_a_picture_of_nothing() -> None:
    assert "no iteration has ended" in svg(View.of(struct(rounds=[])))


def test_xm_starts_without_what_it_does_not_need() -> None:
    code = (
        "import sys, xendpy.cli.xm, xendpy.cli.migrate, xendpy.cli.migrations;"
        "sys.exit(bool({'rich', 'uvloop', 'numpy', 'cryptography'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=80).returncode == 0
