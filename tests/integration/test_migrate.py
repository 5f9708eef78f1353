"""Migration between daemons that are processes, and to old xends, as an operator has it done."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import recorded, streams
from tests.peers.hosts import TICKER, Host, pair, remove_guests, until
from tests.peers.xend import Sender
from tests.peers.xend_receiver import XendReceiver
from xendpy.hypervisor import testguest_link

SLOW = "--bandwidth=1"  # MiB/s: a guest of 16 MiB is under way for as long as any test looks
BUSY = "tick=0.05 dirty=40MB/s wss=12MB"  # never less than 12 MiB to send

OLD = streams.pv_image(release="3.1", p2m_size=256)

pytestmark = pytest.mark.timeout(480)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    with pair(tmp_path_factory.mktemp("hosts")) as both:
        yield both


@pytest.fixture
def here(hosts: tuple[Host, Host]) -> Host:
    return hosts[0]


@pytest.fixture
def there(hosts: tuple[Host, Host]) -> Host:
    return hosts[1]


@pytest.fixture(autouse=True)
def nothing_left(hosts: tuple[Host, Host]) -> Iterator[None]:
    yield
    try:
        for host in hosts:
            for guest in host.guests():
                host.call("xend.domain.destroy", guest)
    finally:  # one that is in doubt fails its own test, and no other
        for host in hosts:
            remove_guests(host)


def ticks(host: Host, guest: str = "testvm1") -> list[int]:
    """Return the numbers of the ticks that a guest has logged."""
    return [int(line.rpartition("#")[2]) for line in host.console(guest)]


def migrating(host: Host, guest: str = "testvm1") -> dict[str, Any] | None:
    """Return the guest's migration once pages are on their way."""
    rows = host.call("xendpy.migrations")
    running = [row for row in rows if row["domain"] == guest and row["state"] == "precopy"]
    return running[-1] if running else None


def goes_on(host: Host, guest: str = "testvm1") -> bool:
    before = max(ticks(host, guest), default=0)
    until(lambda: max(ticks(host, guest), default=0) > before, f"{guest} ticks")
    return True


def faults(host: Host) -> list[str]:
    """Return what the one guest of a host finds wrong with its memory."""
    (path,) = (host.root / "var/run/xend/testguest").glob("*.sock")
    link = testguest_link.connect(path)
    assert link is not None
    try:
        return list(link.command("check")["faults"])
    finally:
        link.close()


def test_live_and_back_without_losing_a_tick(here: Host, there: Host) -> None:
    here.create(extra="tick=0.05 dirty=5MB/s wss=4MB")
    assert here.xm("migrate", "--live", "testvm1", "et-virt08").stdout == ""
    assert here.guests() == [] and there.guests() == ["testvm1"]
    assert goes_on(there)
    there.xm("migrate", "-l", "testvm1", "et-virt07")
    assert goes_on(here) and there.guests() == []
    numbers = ticks(here)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    lines = "\n".join(here.console("testvm1"))
    assert re.search(r"et-virt07 (.|\n)*et-virt08 (.|\n)*et-virt07 ", lines)
    last = there.last()
    assert last["converged"]


def test_offline_sends_every_page_once(here: Host, there: Host) -> None:
    here.create(extra=BUSY)
    here.xm("migrate", "testvm1", "et-virt08")
    rounds = here.last()["rounds"]
    assert len(rounds) == 1 and rounds[0]["last"]
    assert goes_on(there)


def test_what_need_not_be_sent_is_not(here: Host, there: Host) -> None:
    here.create(memory=32)
    here.xm("migrate", "--live", "--compress", "testvm1", "et-virt08")
    assert goes_on(there)
    numbers = ticks(there)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_over_several_connections(here: Host, there: Host) -> None:
    here.create(memory=32, extra="tick=0.05 fill=random dirty=5MB/s wss=4MB")
    here.xm("migrate", "--live", "--streams=4", "testvm1", "et-virt08")
    assert goes_on(there)
    there.xm("migrate", "--streams=3", "testvm1", "et-virt07")
    assert goes_on(here)
    numbers = ticks(here)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert faults(here) == []


def test_to_the_host_it_is_on(here: Host) -> None:
    here.create()
    domid = here.xm("domid", "testvm1").stdout
    here.xm("migrate", "--live", "testvm1", "et-virt07")
    assert here.guests() == ["testvm1"]
    assert here.xm("domid", "testvm1").stdout != domid
    assert goes_on(here)


def test_while_it_moves_it_has_two_names(here: Host) -> None:
    here.create(extra=BUSY)
    xm = here.begin("migrate", "--live", SLOW, "testvm1", "et-virt08")
    row = until(lambda: migrating(here), "under way")
    assert here.guests() == ["migrating-testvm1"]
    ids = {here.xm("domid", name).stdout for name in ("testvm1", "migrating-testvm1")}
    assert len(ids) == 1
    refused = here.xm("pause", "testvm1", check=False)
    assert refused.returncode == 1 and "is being migrated" in refused.stderr
    assert "already exists" in here.xm("create", f"{here.root}/testvm1.cfg", check=False).stderr
    here.xm("migrations", "cancel", row["id"][:8])
    assert xm.wait(80) == 130
    assert here.guests() == ["testvm1"]


@pytest.mark.parametrize("way", ["command", "ctrl-c"])
def test_cancelled_it_goes_on_here(here: Host, there: Host, way: str) -> None:
    here.create(extra=BUSY)
    xm = here.begin("migrate", "--live", SLOW, "testvm1", "et-virt08")
    row = until(lambda: migrating(here), "under way")
    if way == "ctrl-c":
        xm.send_signal(signal.SIGINT)
    else:
        here.call("xendpy.migration.cancel", row["id"])
    until(lambda: here.call("xendpy.migration", row["id"])["ended"], "ended")
    assert here.state("testvm1").startswith("r")
    assert xm.wait(80) == 130
    assert xm.communicate()[1] == f"Migration {row['id'][:8]} cancelled: testvm1 goes on here.\n"
    assert goes_on(here)
    until(lambda: there.guests() == [] and there.call("xendpy.handovers") == [], "nothing there")


def test_without_convergence_it_is_stopped_and_moved(here: Host, there: Host) -> None:
    here.create(extra=BUSY)
    options = ("--bandwidth=30", "--max-iterations=2", "--max-downtime=50")
    here.xm("migrate", "--live", *options, "testvm1", "et-virt08")
    last = here.last()
    assert last["converged"] is False and len(last["rounds"]) == 3
    assert goes_on(there)


def test_without_convergence_it_stays_if_told_so(here: Host, there: Host) -> None:
    here.create(extra=BUSY)
    options = ("--bandwidth=30", "--max-iterations=2", "--on-no-convergence=cancel")
    done = here.xm("migrate", "-l", *options, "testvm1", "et-virt08", check=False)
    assert done.returncode == 1
    assert done.stderr == ("Error: no convergence after 2 iterations\ntestvm1 goes on here.\n")
    assert goes_on(here) and there.guests() == []


def test_bandwidth_is_kept(here: Host) -> None:
    here.create()
    here.xm("migrate", "--live", "--bandwidth=16", "testvm1", "et-virt08")
    first = here.last()["rounds"][0]
    # A tenth of a second's worth may be sent at once; the rest takes its time.
    assert first["seconds"] >= first["sent_pages"] * 4096 / (16 << 20) - 0.2


def test_json_has_the_names_of_query_migrate(here: Host) -> None:
    here.create(extra="tick=0.05 dirty=2MB/s wss=2MB")
    done = here.xm("migrate", "--live", "--json", "testvm1", "et-virt08")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert objects[-1]["status"] == "completed"
    assert {"total-time", "setup-time", "downtime", "expected-downtime", "ram"} <= set(objects[-1])
    ram = objects[-1]["ram"]
    assert ram["normal"] * ram["page-size"] == ram["normal-bytes"] <= ram["transferred"]
    assert ram["total"] == 16 << 20 and ram["remaining"] == 0 and ram["dirty-sync-count"] >= 1


def test_progress_is_lines_and_a_summary(here: Host) -> None:
    here.create()
    out = here.xm("migrate", "--live", "--progress", "testvm1", "et-virt08").stdout
    assert re.search(r"^migration [a-z, -]+iteration 1, transferred .* MiB/s", out, re.M)
    assert re.search(r"^downtime: .* \(suspend .* \+ last iteration .*\)$", out, re.M)


def test_dry_run_sends_nothing(here: Host, there: Host) -> None:
    here.create()
    table = here.xm("migrate", "--dry-run", "testvm1", "et-virt08").stdout
    assert re.search(r"^target +memory +ok ", table, re.M) and "Nothing forbids" in table
    assert here.guests() == ["testvm1"] and there.call("xendpy.migrations")[-1:] != [""]
    there.create()
    done = here.xm("migrate", "--dry-run", "--json", "testvm1", "et-virt08", check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 1 and not found["possible"]
    bad = [check for check in found["checks"] if check["status"] == "failed"]
    assert [check["name"] for check in bad] == ["name and uuid"]


def test_a_name_that_is_taken_there_is_refused_before_a_page(here: Host, there: Host) -> None:
    here.create()
    there.create()
    done = here.xm("migrate", "--live", "testvm1", "et-virt08", check=False)
    assert done.returncode == 1
    assert "VM name 'testvm1' already exists" in done.stderr and "goes on here" in done.stderr
    assert here.last()["pages"] == "0" and goes_on(here) and goes_on(there)
    assert re.search(
        r"event=relocation direction=in .*name=\S+ uuid=.* result=failed", there.log()
    )


def test_nobody_answers(here: Host) -> None:
    here.create()
    done = here.xm("migrate", "-l", "-p", "1", "testvm1", "et-virt08", check=False)
    assert done.returncode == 1 and "can't connect: Connection refused" in done.stderr
    assert goes_on(here)


def test_a_paused_guest_is_refused(here: Host) -> None:
    here.create()
    here.xm("pause", "testvm1")
    done = here.xm("migrate", "--live", "testvm1", "et-virt08", check=False)
    assert done.returncode == 1 and "Domain is not running" in done.stderr
    assert here.state("testvm1") == "--p---"


def test_moved_away_it_is_not_created_again_without_force(here: Host, there: Host) -> None:
    here.create("once", more=f'uuid = "{uuid.uuid4()}"')
    here.xm("migrate", "--live", "once", "et-virt08")
    again = here.xm("create", f"{here.root}/once.cfg", check=False)
    assert again.returncode == 1
    assert "it was moved to et-virt08; --force does it all the same" in again.stderr
    here.xm("create", "--force", f"{here.root}/once.cfg")
    assert goes_on(here, "once")
    here.xm("destroy", "once")
    here.xm("create", f"{here.root}/once.cfg")  # it is this host's again


def test_the_managed_configuration_moves_along(here: Host, there: Host) -> None:
    file = here.root / "managed.cfg"
    file.write_text(TICKER.format(name="testvm1", memory=16, extra="tick=0.05"))
    here.xm("new", str(file))
    here.xm("start", "testvm1")
    here.xm("migrate", "--live", "-c", "testvm1", "et-virt08")
    assert goes_on(there)
    assert "testvm1" not in here.xm("list").stdout
    there.xm("destroy", "testvm1")
    there.xm("start", "testvm1")
    there.xm("migrate", "--live", "testvm1", "et-virt07")
    assert goes_on(here)
    here.xm("destroy", "testvm1")
    assert "testvm1" not in here.xm("list").stdout
    there.xm("delete", "testvm1")


def test_a_xend_s_managed_configuration_arrives(here: Host) -> None:
    said, wanted = b"(change_home_server False)", b"(change_home_server True )"
    wire = recorded.load(recorded.PV64)[0].replace(said, wanted, 1)
    assert Sender((here.address, here.port)).migrate(wire).succeeded
    (guest,) = until(here.guests, "the guest rests here")
    here.xm("destroy", guest)
    # It is managed once its sender has let go, which may be after it was destroyed.
    until(lambda: guest in here.xm("list").stdout, "the guest is managed here")
    here.xm("delete", guest)


def test_the_picture_of_a_migration(here: Host, there: Host, tmp_path: Path) -> None:
    here.create(extra="tick=0.05 dirty=5MB/s wss=4MB")
    here.xm("migrate", "--live", "testvm1", "et-virt08")
    last = here.last()
    plot = tmp_path / "moved.svg"
    shown = here.xm("migrations", "show", last["id"][:8], "--plot", str(plot)).stdout
    assert last["id"] in shown and re.search(r"^ +1 +\d+ +\d+ ", shown, re.M)
    (arrived,) = [row for row in there.call("xendpy.migrations") if row["id"] == last["id"]]
    assert (arrived["direction"], arrived["domain"]) == ("in", "testvm1")
    assert f"{last['id'][:8]} in " in there.xm("migrations").stdout
    assert f"<title>{last['rounds'][0]['sent_pages']:,} pages</title>" in plot.read_text()


# Resting guests: what an old xend sent here, kept, and sent on.


def rest(host: Host, release: str = "4.4") -> str:
    """Have an old xend relocate a guest to `host`: 4.4's is recorded; return its name."""
    wire = recorded.load(recorded.PV64)[0] if release == "4.4" else old_wire()
    report = Sender((host.address, host.port)).migrate(wire)
    assert report.succeeded, report.shown
    return str(until(host.guests, "the guest rests here")[0])


def old_wire() -> bytes:
    """Return the relocation of a guest from Xen 3.1, which every later one understands."""
    return streams.envelope(streams.config("web31")) + OLD.wire


def expected_pages(release: str = "4.4") -> dict[int, str]:
    if release != "4.4":
        return {pfn: hashlib.sha256(page).hexdigest() for pfn, page in OLD.memory.items()}
    _, description = recorded.load(recorded.PV64)
    return {int(pfn, 16): digest for pfn, digest in description["page_sha256"].items()}


def old_host(here: Host, receiver: XendReceiver, verdict_s: int = 60) -> None:
    """Let `here` know the old host by name, and how long to wait for its verdict."""
    config = here.root / "etc/xen/xend-config.sxp"
    said = config.read_text().splitlines()
    kept = [line for line in said if "oldhost" not in line and "verdict" not in line]
    rows = (receiver.peer_row(), f"(xendpy-verdict-timeout {verdict_s})")
    config.write_text("\n".join([*kept, *rows, ""]))
    before = here.log().count("configuration reloaded")
    here.xend("reload")
    until(lambda: here.log().count("configuration reloaded") > before, "reloaded")


def test_a_resting_guest_moves_offline(here: Host, there: Host) -> None:
    name = rest(here)
    here.xm("migrate", name, "et-virt08")
    assert here.guests() == [] and there.guests() == [name]
    with XendReceiver() as old:
        old_host(there, old)
        there.xm("migrate", name, "oldhost")
    assert old.received[0].pages == expected_pages()
    assert there.guests() == []


@pytest.mark.parametrize("release", ["3.1", "3.2", "3.4", "4.0", "4.1", "4.4"])
def test_to_an_old_xend_of_each_release(here: Host, release: str) -> None:
    name = rest(here, release)
    with XendReceiver(release) as old:
        old_host(here, old)
        done = here.xm("migrate", name, "oldhost")
    assert (done.stdout, here.guests()) == ("", [])
    (received,) = old.received
    assert received.config is not None and received.config.name == name
    assert received.pages == expected_pages(release)


def test_to_an_old_xend_with_32_bit_tools(here: Host) -> None:
    image = streams.pv_image(release="3.1", width=4, guest_width=4, p2m_size=256)
    wire = streams.envelope(streams.config("web32")) + image.wire
    assert Sender((here.address, here.port)).migrate(wire).succeeded
    until(here.guests, "the guest rests here")
    with XendReceiver("3.1", tools=32) as old:
        old_host(here, XendReceiver("3.1", port=old.port))
        done = here.xm("migrate", "web32", "oldhost", check=False)
        assert "tools 32 is for receivers of 32 bits, as its sender was" in done.stderr
        assert (here.guests(), here.in_doubt(), old.received) == (["web32"], [], [])
        said = here.xm("migrate", "--dry-run", "--peer-tools=32", "web32", "oldhost").stdout
        assert "spoken to as 3.1 with 32-bit tools" in said
        old_host(here, old)
        here.xm("migrate", "web32", "oldhost")
    assert here.guests() == []
    (received,) = old.received
    assert received.pages == {
        pfn: hashlib.sha256(page).hexdigest() for pfn, page in image.memory.items()
    }


def test_what_an_older_xen_does_not_know_is_not_sent_to_it(here: Host) -> None:
    name = rest(here)  # it has xsave state, which came with 4.1
    with XendReceiver("3.4") as old:
        old_host(here, old)
        done = here.xm("migrate", name, "oldhost", check=False)
    assert done.returncode == 1 and "xsave state in a stream for Xen 3.4" in done.stderr
    assert here.guests() == [name] and here.in_doubt() == []


@pytest.mark.parametrize("behaviour", ["refuse", "err"])
def test_an_old_xend_that_refuses_leaves_it_here(here: Host, behaviour: str) -> None:
    name = rest(here)
    with XendReceiver(behaviour=behaviour, text="Not enough memory") as old:
        old_host(here, old)
        done = here.xm("migrate", name, "oldhost", check=False)
    assert done.returncode == 1
    assert "Not enough memory (from oldhost)" in done.stderr
    assert here.guests() == [name] and here.in_doubt() == []


@pytest.mark.parametrize(("behaviour", "choice"), [("silent", "keep"), ("close", "discard")])
def test_in_doubt_until_an_operator_settles(here: Host, behaviour: str, choice: str) -> None:
    name = rest(here)
    with XendReceiver(behaviour=behaviour) as old:
        old_host(here, old, verdict_s=1)
        done = here.xm("migrate", name, "oldhost", check=False)
    assert done.returncode == 4
    (entry,) = here.in_doubt()
    short = entry["id"][:8]
    assert f"xm migrations settle {short} keep" in done.stderr
    mention = f"In doubt after a migration: {name}; see `xm migrations`\n"
    assert here.xm("list").stderr == mention and here.xend("status").stderr == mention
    assert f"In doubt: {name}, migration {short}" in here.xm("migrations").stdout
    more = {"save": [str(here.root / "doubtful.sav")], "migrate": ["oldhost"]}
    for verb in ("unpause", "destroy", "save", "migrate"):
        refused = here.xm(verb, name, *more.get(verb, ()), check=False)
        assert refused.returncode == 1 and "may own it" in refused.stderr
    here.xm("migrations", "settle", short, choice)
    assert here.in_doubt() == [] and here.xm("list").stderr == ""
    assert here.guests() == ([name] if choice == "keep" else [])


def test_a_test_guest_is_not_sent_to_an_old_xend(here: Host) -> None:
    here.create()
    with XendReceiver() as old:
        old_host(here, old)
        done = here.xm("migrate", "--live", "testvm1", "oldhost", check=False)
        checked = here.xm("migrate", "--dry-run", "testvm1", "oldhost", check=False)
    assert done.returncode == 1 and "a test guest can run nowhere else" in done.stderr
    assert checked.returncode == 1 and "would be refused" in checked.stdout
    assert old.received == [] and goes_on(here)


def test_a_stopped_daemon_cancels_and_the_guest_goes_on(tmp_path: Path) -> None:
    with pair(tmp_path, more="(xendpy-stop-while-moving cut)\n") as (here, there):
        here.create(extra=BUSY)
        xm = here.begin("migrate", "--live", SLOW, "testvm1", "et-virt08")
        until(lambda: migrating(here), "under way")
        here.stop()
        assert xm.wait(80) in (4, 130)
        here.start()
        assert here.guests() == ["testvm1"] and goes_on(here)
        until(lambda: there.call("xendpy.handovers") == [], "the target has been told")
        assert there.guests() == []


def test_a_killed_source_keeps_its_guest(tmp_path: Path) -> None:
    with pair(tmp_path) as (here, there):
        here.create(extra=BUSY)
        xm = here.begin("migrate", "--live", SLOW, "testvm1", "et-virt08")
        until(lambda: migrating(here), "under way")
        here.kill()
        assert xm.wait(80) == 4
        here.start()
        assert here.guests() == ["testvm1"] and goes_on(here)
        until(lambda: there.guests() == [] and not there.call("xendpy.handovers"), "told")
