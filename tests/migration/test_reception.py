"""What becomes of a guest, by how its stream and its driver end."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests import modern, recorded
from tests.bytes_source import BytesSource
from tests.drive import Recorder, drive_bytes
from tests.streams import (
    XTAB,
    Entry,
    batch,
    config,
    entries,
    envelope,
    hvm_image,
    pv_image,
    vcpu_info,
)
from xendpy.errors import (
    ChannelAborted,
    ChannelError,
    DomainExists,
    HypervisorError,
    RecordError,
    XendError,
)
from xendpy.guest.domain import Domain, DomainConfig, GuestType
from xendpy.guest.pages import PageBatch
from xendpy.hypervisor.base import Capabilities
from xendpy.hypervisor.xlsxp import parse_json
from xendpy.migration.progress import MigrationProgress, MigrationState
from xendpy.migration.reception import (
    Kept,
    Outcome,
    Received,
    ReceiveLimits,
    Reception,
    Rejected,
    start,
)
from xendpy.stream import libxl
from xendpy.stream.libxl import read_xl_header
from xendpy.stream.records import Ending, Record
from xendpy.stream.xend import decode_body


@dataclass
class Driver:
    """Takes one guest; `fails` maps a step's name to what it raises."""

    fails: dict[str, Exception] = field(default_factory=dict)
    runs: str = "discarded"
    kept: str = ""
    rest_file: io.BytesIO = field(default_factory=io.BytesIO)
    cancelled: bool = False
    name: str = "fake"
    guest_types: frozenset[GuestType] = frozenset(GuestType)

    def __post_init__(self) -> None:
        self.recorder = Recorder()
        self.rest_file.close = lambda: None  # type: ignore[method-assign]  # read afterwards

    def capabilities(self) -> Capabilities:
        return Capabilities(
            guest_types=self.guest_types,
            live_save=frozenset(),
            runs_guests=True,
            free_memory_bytes=0,
            total_memory_bytes=0,
        )

    @contextmanager
    def restore(self, config: DomainConfig, *, migration_id: str = "") -> Iterator[Driver]:
        self._step("restore")
        self.config = config
        yield self

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        self._step("populate")
        return self.recorder.populate(batch)

    def apply(self, record: Record) -> None:
        self._step(type(record).__name__)
        self.recorder.apply(record)

    def complete(self) -> Domain:
        self._step("complete")
        self.runs = "whole"
        return Domain(domid=1, uuid=self.config.uuid, name=self.config.name)

    def keep(self, reason: str) -> str:
        self.runs, self.kept = "kept", reason
        return "web1.partial"

    def rest(self) -> io.BytesIO:
        return self.rest_file

    def cancel(self) -> None:
        self.cancelled = True

    def _step(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]


class Broken(BytesSource):
    """Ends with an error of the connection instead of an end."""

    def __init__(self, data: bytes, error: Exception) -> None:
        super().__init__(data)
        self._error = error

    def _cut(self, wanted: int) -> None:
        raise self._error


def run(driver: Driver, source: Any, **limits: int) -> tuple[Outcome, list[MigrationProgress]]:
    seen: list[MigrationProgress] = []
    reception = Reception(
        source,
        driver,  # type: ignore[arg-type]  # the part of a Hypervisor that is asked
        limits=ReceiveLimits(**limits),
        progress=start("7", "192.0.2.1:700"),
        publish=seen.append,
    )
    return reception.run(), seen


IMAGE = pv_image([entries(range(64)), entries([3, 4]), entries([2])])
HEAD = envelope(config())
WIRE = HEAD + IMAGE.wire


def test_whole_guest_is_received_with_its_figures() -> None:
    driver = Driver()
    outcome, seen = run(driver, BytesSource(WIRE))
    assert isinstance(outcome, Received)
    assert driver.runs == "whole"
    assert driver.recorder.memory == dict(IMAGE.memory)
    last = outcome.progress
    assert (last.pages, last.iteration, last.total_pages) == (67, 2, 64)
    assert (last.name, last.bytes_done) == ("web1", len(WIRE))
    assert outcome.downtime.total_s >= 0
    order = list(dict.fromkeys(progress.state for progress in seen))
    assert order == [
        MigrationState.PRECOPY,
        MigrationState.STOP_AND_COPY,
        MigrationState.COMPLETING,
        MigrationState.DONE,
    ]


@pytest.mark.parametrize(
    ("limits", "driver", "text"),
    [
        ({"max_guest_bytes": 1}, Driver(), "at most 0 MiB are taken"),
        ({"max_config_bytes": 10}, Driver(), "config size"),
        ({"max_sxp_depth": 1}, Driver(), "line 1"),
        ({}, Driver(guest_types=frozenset({GuestType.HVM})), "PV guests are not taken"),
        ({}, Driver(fails={"restore": DomainExists("web1", "web1 is here")}), "web1 is here"),
    ],
    ids=["memory", "config", "depth", "type", "name"],
)
def test_refusal_reads_nothing_behind_the_config(
    limits: dict[str, int], driver: Driver, text: str
) -> None:
    source = BytesSource(WIRE)
    outcome, seen = run(driver, source, **limits)
    assert isinstance(outcome, Rejected)
    assert text in str(outcome.error)
    assert source.offset <= len(HEAD)
    assert seen[-1].state is MigrationState.FAILED
    named = "config" not in text and "line 1" not in text
    assert seen[-1].name == ("web1" if named else "")  # the audit trail says who it was


def test_guest_that_may_not_move_is_refused() -> None:
    wire = envelope(config().replace(b"(kernel", b"(nomigrate 1) (kernel")) + IMAGE.wire
    outcome, _ = run(Driver(), BytesSource(wire))
    assert isinstance(outcome, Rejected)
    assert str(outcome.error) == "cannot restore non-migratable domain"


def modern_hvm(*pfns: int) -> bytes:
    head = modern.headers(modern.HVM) + modern.record(modern.STATIC_DATA_END)
    return head + modern.page_data([Entry(pfn, 0xE) for pfn in pfns]) + modern.record(modern.END)


def test_frames_far_above_a_modern_guest_are_refused() -> None:
    # 1 MiB: its memory, and anything else below 4 GiB.
    for pfns, taken in (([0, 0xFF, 0xFF000], True), ([0x1000FF], True), ([0x100100], False)):
        limits = ReceiveLimits().stream(DomainConfig.parse(config(hvm=True)))
        recorder = Recorder()
        steps = decode_body(GuestType.HVM, limits)
        if taken:
            drive_bytes(steps, modern_hvm(*pfns), recorder)
            assert sorted(recorder.types) == pfns
        else:
            with pytest.raises(RecordError, match="0xe000000000100100, expected a pfn below"):
                drive_bytes(steps, modern_hvm(*pfns), recorder)
    wire = envelope(config(hvm=True)) + modern_hvm(0xFFFFFFFE)
    outcome, _ = run(Driver(), BytesSource(wire))
    assert isinstance(outcome, Rejected) and "a pfn below 0x100100" in str(outcome.error)


def test_a_p2m_far_above_a_modern_guest_is_refused() -> None:
    head = modern.headers(modern.PV) + modern.pv_info() + modern.record(modern.STATIC_DATA_END)
    for last, text in ((0x100100, "ascending, below 0x100100"), (1 << 31, "expected at most 16")):
        frames = modern.p2m_frames(0, last, *[1] * (last // 512 + 1))
        outcome, _ = run(Driver(), BytesSource(HEAD + head + frames))
        assert isinstance(outcome, Rejected) and text in str(outcome.error)


@pytest.mark.parametrize("name", recorded.RELOCATIONS)
def test_what_real_xends_sent_is_within_the_limits_of_its_configuration(name: str) -> None:
    driver = Driver()
    outcome, _ = run(driver, BytesSource(recorded.load(name)[0]))
    assert isinstance(outcome, Received)


@pytest.mark.parametrize("name", [recorded.XL_PV, recorded.XL_PVH])
def test_what_xl_saved_is_within_the_limits_of_its_configuration(name: str) -> None:
    wire = recorded.xl_save(name)
    header, taken = drive_bytes(read_xl_header(), wire, Recorder())
    guest = parse_json(header.config)
    limits = ReceiveLimits().stream(guest)
    _, used = drive_bytes(libxl.decode(guest.guest_type, limits), wire[taken:], Recorder())
    assert taken + used == len(wire)


MID_FAILURES = [
    (HypervisorError("no room", operation="populate"), "populate: no room"),
    (OSError(28, "No space left on device"), "restore: no space left on device"),
    (MemoryError(), "this host is short of memory"),
    (
        ZeroDivisionError("a bug"),
        "internal error while restoring, see the log of the receiving host",
    ),
]


@pytest.mark.parametrize(
    ("error", "text"), MID_FAILURES, ids=["driver", "system", "memory", "bug"]
)
def test_failure_of_ours_before_the_end_is_told(error: Exception, text: str) -> None:
    driver = Driver(fails={"populate": error})
    outcome, _ = run(driver, BytesSource(WIRE))
    assert isinstance(outcome, Rejected)
    assert str(outcome.error) == text
    assert driver.runs == "discarded"


@pytest.mark.parametrize(
    ("error", "text"), MID_FAILURES, ids=["driver", "system", "memory", "bug"]
)
@pytest.mark.parametrize("step", ["Ending", "TscInfo", "OnlineVcpus", "SharedInfo", "complete"])
def test_failure_of_ours_behind_the_mark_is_kept(step: str, error: Exception, text: str) -> None:
    driver = Driver(fails={step: error})
    source = BytesSource(WIRE)
    outcome, _ = run(driver, source)
    assert isinstance(outcome, Kept)
    assert (str(outcome.error), driver.kept, driver.runs) == (text, text, "kept")
    assert source.offset == len(WIRE)


def test_rest_begins_with_the_record_that_was_not_taken_in() -> None:
    driver = Driver(fails={"OnlineVcpus": HypervisorError("too many")})
    run(driver, BytesSource(WIRE))
    at = IMAGE.wire.index(vcpu_info(0, (0,)))
    assert driver.rest_file.getvalue() == IMAGE.wire[at:]


def test_what_says_nothing_is_no_part_of_the_rest() -> None:
    driver = Driver(fails={"OnlineVcpus": HypervisorError("too many")})
    at = IMAGE.wire.index(vcpu_info(0, (0,)))
    gone = batch([Entry(3, XTAB)] * 5)
    run(driver, BytesSource(HEAD + IMAGE.wire[:at] + gone + IMAGE.wire[at:]))
    assert driver.rest_file.getvalue() == IMAGE.wire[at:]


MODERN_PV = (
    modern.headers(modern.PV)
    + modern.pv_info()
    + modern.record(modern.STATIC_DATA_END)
    + modern.p2m_frames(0, 63, 4)
)
LONG = [
    ("optional-record", MODERN_PV + modern.record(1 << 31 | 7, bytes(16 << 20))),
    ("empty-vcpu-records", MODERN_PV + modern.vcpu(modern.EXTENDED, 0, b"") * 40_000),
    ("batches-of-nothing", IMAGE.wire[: IMAGE.ending] + batch([Entry(3, XTAB)] * 1024) * 1000),
]


@pytest.mark.parametrize("image", [row[1] for row in LONG], ids=[row[0] for row in LONG])
def test_what_says_nothing_is_not_remembered(image: bytes) -> None:
    source = BytesSource(HEAD + image)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        outcome, _ = run(Driver(), source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not isinstance(outcome, Received)  # it is cut there
    assert source.offset == len(HEAD + image)
    assert peak - before < 3 << 20


def test_nothing_is_left_over_when_only_the_build_failed() -> None:
    driver = Driver(fails={"complete": HypervisorError("no")})
    run(driver, BytesSource(WIRE))
    assert driver.rest_file.getvalue() == b""


def test_bad_stream_in_the_first_round_is_told() -> None:
    driver = Driver()
    begin = IMAGE.wire[: IMAGE.wire.index(struct.pack("<i", 64))] + batch(entries(range(16)))
    source = BytesSource(HEAD + begin + struct.pack("<i", 5000) + bytes(1 << 20))
    outcome, _ = run(driver, source)
    assert isinstance(outcome, Rejected)
    assert driver.runs == "discarded"


def test_bad_stream_after_the_first_round_is_told_and_kept() -> None:
    # So little follows that a sender may have let go before it hears of it.
    driver = Driver()
    wire = HEAD + IMAGE.wire[: IMAGE.ending] + struct.pack("<i", 5000) + bytes(100)
    source = BytesSource(wire)
    outcome, _ = run(driver, source)
    assert isinstance(outcome, Kept)
    assert driver.runs == "kept"
    assert source.offset < len(wire)  # what follows is not read


@pytest.mark.parametrize("error", [ChannelError("reset"), ChannelAborted("cut")])
def test_broken_connection_keeps_what_is_a_whole_round(error: XendError) -> None:
    before_second = len(HEAD) + IMAGE.ending - 2 * 4096  # inside the second round
    for cut, runs in ((before_second - 30 * 4096, "discarded"), (len(WIRE) - 1, "kept")):
        driver = Driver()
        outcome, seen = run(driver, Broken(WIRE[:cut], error))
        assert driver.runs == runs
        assert outcome.error is error  # type: ignore[union-attr]
        wanted = MigrationState.ABORTED if error.reason == "cut" else MigrationState.FAILED  # type: ignore[attr-defined]
        assert seen[-1].state is wanted


@pytest.mark.parametrize("cut", range(len(HEAD) + IMAGE.ending + 40, len(WIRE), 997))
def test_every_cut_behind_the_mark_is_kept(cut: int) -> None:
    driver = Driver()
    outcome, _ = run(driver, BytesSource(WIRE[:cut]))
    assert isinstance(outcome, Kept)
    assert any(isinstance(record, Ending) for record in driver.recorder.records)


@pytest.mark.parametrize(
    "device_model", [b"", b"QemuDeviceModelRecord", b"QemuDeviceModelRecordQE"]
)
def test_hvm_guest_is_whole_only_with_its_device_model(device_model: bytes) -> None:
    driver = Driver()
    wire = envelope(config(hvm=True)) + hvm_image(device_model=device_model).wire
    outcome, _ = run(driver, BytesSource(wire))
    assert isinstance(outcome, Kept)
    assert isinstance(outcome.error, RecordError | XendError)
    assert driver.runs == "kept"


def test_hvm_guest_with_its_device_model_is_whole() -> None:
    driver = Driver()
    outcome, _ = run(driver, BytesSource(envelope(config(hvm=True)) + hvm_image().wire))
    assert isinstance(outcome, Received)
