"""`xm inspect`: what it says of real streams, and of broken ones."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bytes_source import BytesSource
from tests.cli.images import HVM, PV32, PV64, call, description, stream
from tests.recorded import XL_PV, XL_PVH, xl_save
from xendpy.cli import extract, inspect
from xendpy.errors import StreamTruncated
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.hypervisor.base import RestoreSession
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.receive import NoGuest, drive
from xendpy.paths import Paths
from xendpy.stream.xend import decode_body, read_envelope

PAGE = 4096
REQUEST = b"receive\n"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image"


@pytest.fixture
def facts(image: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function: write an image, return what `--json` says of it and the exit code."""

    def examine(content: bytes, *options: str) -> tuple[dict[str, Any], int]:
        image.write_bytes(content)
        code = call(inspect, image, "--json", *options)
        return json.loads(capsys.readouterr().out), code

    return examine


def body_offset(capture: bytes) -> int:
    """Return where the libxc stream of a capture begins."""
    (length,) = struct.unpack_from("!i", capture, len(REQUEST) + 16)
    return len(REQUEST) + 20 + int(length)


@pytest.mark.parametrize(
    ("name", "guest", "stream_facts", "rounds"),
    [
        (PV64, "pv", {"tool_width": 8, "guest_width": 8, "pt_levels": 4, "xsave_bytes": 864}, 6),
        (PV32, None, {"tool_width": 8, "guest_width": 4, "pt_levels": 3}, 1),
        (HVM, "hvm", {"tool_width": 8}, 6),
    ],
)
def test_real_streams_are_whole(
    name: str, guest: str | None, stream_facts: dict[str, int], rounds: int, facts: Any
) -> None:
    found, code = facts(stream(name))
    described = description(name)
    assert (code, found["whole"], found["anomalies"]) == (0, True, [])
    assert found["stream"]["p2m_size"] == described["p2m_size"]
    assert found["stream"]["guest_type"] == described["kind"]
    assert stream_facts.items() <= found["stream"].items()
    assert (found["guest"] or {}).get("type") == guest
    assert len(found["rounds"]) == rounds
    with_data = {kind: count for kind, count in found["pages_sent"].items() if kind != "XALLOC"}
    assert sum(found["rounds"]) == sum(with_data.values())
    assert found["memory"]["present_pages"] == len(described["page_sha256"])
    assert len(found["vcpus"]) == (described["nvcpu"] if described["kind"] == "pv" else 0)


@pytest.mark.parametrize(
    ("name", "guest", "odd"),
    [(XL_PV, "pv", ["p2m page 0x5f88 is not present (48 in all)"]), (XL_PVH, "hvm", [])],
)
def test_save_files_of_xl_are_whole(name: str, guest: str, odd: list[str], facts: Any) -> None:
    found, code = facts(xl_save(name))
    assert (code, found["whole"]) == (1 if odd else 0, True)
    assert [anomaly["text"] for anomaly in found["anomalies"]] == odd  # cut out of the recording
    assert (found["kind"], found["stream"]["format"]) == ("xl save file", "libxc-v3")
    assert (found["guest"]["type"], found["stream"]["guest_type"]) == (guest, guest)
    sent = found["pages_sent"]
    assert found["memory"]["present_pages"] == sum(sent.values()) - sent.get("XTAB", 0) > 0


def test_page_tables_are_counted_by_their_last_type(facts: Any) -> None:
    found, _ = facts(stream(PV64))
    tables = description(PV64)["page_tables"].values()
    for level in (1, 2, 3):
        expected = sum(t["level"] == level and not t["pinned"] for t in tables)
        assert found["memory"]["by_type"].get(f"L{level}TAB", 0) == expected
    assert found["memory"]["by_type"]["L4TAB_PIN"] == sum(t["level"] == 4 for t in tables)


@pytest.mark.parametrize("name", [PV64, HVM])
def test_sum_is_over_number_and_content_of_every_frame(
    name: str, tmp_path: Path, facts: Any, image: Path
) -> None:
    found, _ = facts(stream(name))
    out = tmp_path / "memory"
    assert call(extract, image, out) == 0
    expected = hashlib.sha256()
    with out.open("rb") as memory:
        for pfn in sorted(int(key, 16) for key in description(name)["page_sha256"]):
            memory.seek(pfn * PAGE)
            expected.update(pfn.to_bytes(8, "little") + memory.read(PAGE))
    assert found["memory"]["sha256"] == expected.hexdigest()


def test_the_same_guest_has_one_sum_in_every_wrapping(facts: Any) -> None:
    capture = stream(PV64)
    bare = capture[body_offset(capture) :]
    saved, relocated, unwrapped = (
        facts(content)[0] for content in (capture[len(REQUEST) :], capture, bare)
    )
    assert saved["memory"] == relocated["memory"] == unwrapped["memory"]
    kinds = [found["kind"] for found in (saved, relocated, unwrapped)]
    assert kinds == ["save file", "relocation capture", "bare libxc stream"]
    assert unwrapped["guest"] is None
    assert unwrapped["stream"] == saved["stream"]


def test_a_bare_hvm_stream_is_known_by_its_first_batch(facts: Any) -> None:
    capture = stream(HVM)
    found, code = facts(capture[body_offset(capture) :])
    assert (found["stream"]["guest_type"], code) == ("hvm", 0)


@pytest.mark.parametrize(
    ("cut", "decoded"),
    [
        (0x402A15, 0x402A15),  # after the first batch, exactly
        (0x402A16, 0x402A15),
        (0x804A19 + 5000, 0x804A19),
        (0x569 + 4, 0x569),  # in p2m_size
    ],
)
def test_a_cut_stream_says_how_far_it_came(cut: int, decoded: int, facts: Any) -> None:
    found, code = facts(stream(PV64)[:cut])
    assert (code, found["whole"], found["decoded_bytes"]) == (1, False, decoded)
    (anomaly,) = found["anomalies"]
    assert "the stream ends after" in anomaly["text"]
    assert decoded <= anomaly["offset"] <= cut


def test_trailing_bytes_are_an_anomaly(facts: Any) -> None:
    content = stream(PV64)
    found, code = facts(content + b"hello\n")
    assert (code, found["whole"]) == (1, True)
    assert found["anomalies"] == [
        {"offset": len(content), "text": "6 bytes follow the end of the stream"}
    ]


def test_a_bogus_page_type_is_placed_in_the_file(facts: Any) -> None:
    content = bytearray(stream(PV64))
    # The first batch: marker at 0x1a11, its first entry at 0x1a15; type 5 does not exist.
    struct.pack_into("<Q", content, 0x1A15, 0x50000000)
    found, code = facts(bytes(content))
    assert (code, found["decoded_bytes"]) == (1, 0x1A11)
    (anomaly,) = found["anomalies"]
    assert 0x1A11 <= anomaly["offset"] <= 0x1A15
    assert "0x5" in anomaly["text"]


def test_an_unreadable_configuration_does_not_hide_the_memory(facts: Any) -> None:
    content = bytearray(stream(PV64))
    start = len(REQUEST) + 20
    content[start : start + 7] = b"(nothin"
    found, code = facts(bytes(content))
    assert (code, found["whole"], found["guest"]) == (1, True, None)
    assert found["memory"]["present_pages"] == len(description(PV64)["page_sha256"])
    (anomaly,) = found["anomalies"]
    assert anomaly["offset"] == start
    assert anomaly["text"].startswith("configuration: ")


def test_more_vcpus_than_configured_are_an_anomaly(facts: Any) -> None:
    content = stream(PV64).replace(b"(vcpus 2)", b"(vcpus 1)")
    found, code = facts(content)
    assert code == 1
    assert [anomaly["text"] for anomaly in found["anomalies"]] == [
        "vcpu 1 is online, the configuration says 1 vcpus"
    ]


def test_a_hvm_stream_without_device_model_is_cut(facts: Any) -> None:
    content = stream(HVM)
    end = content.index(b"QemuDeviceModelRecord")
    found, code = facts(content[:end])
    assert (code, found["whole"], found["decoded_bytes"]) == (1, False, end)
    assert found["anomalies"] == [
        {"offset": end, "text": "the stream ends after 0 of 21 bytes"},
    ]


def test_records_cover_the_stream_without_a_gap(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = stream(PV64)
    image.write_bytes(content)
    assert call(inspect, image, "--records", "--json") == 0
    *records, report = map(json.loads, capsys.readouterr().out.splitlines())
    position = body_offset(content)
    for record in records:
        assert record["offset"] == position
        position += record["length"]
    assert position == len(content) == report["decoded_bytes"]
    assert [record["record"] for record in records][:3] == ["StreamStart", "PvInfo", "P2mFrames"]
    assert len(records) == sum(report["records"].values()) - report["records"]["Ending"]


def test_records_are_explained(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image.write_bytes(stream(PV64))
    assert call(inspect, image, "--records") == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[3].split()) == (
        "0x0000001a11 4198404 Pages 1023 pages, pfn 0x0-0x401 in 4 runs: 1023 NOTAB"
    )
    tsc = next(line for line in lines if "TscInfo" in line)
    assert "mode 2 (never emulate), 2600123 kHz, 1234605616436508552 ns, incarnation 3" in tsc


def test_the_report_for_a_reader(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image.write_bytes(stream(PV64))
    assert call(inspect, image) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"File       {image}: relocation capture, 18188537 bytes"
    assert "Guest      legacy-pv16, PV, uuid 571e3bb5-6ab3-d8ca-35a4-4b8940748253" in lines
    assert "           vif bridge=xenbr0 mac=00:16:3e:11:22:33" in lines
    assert lines[-1] == "Anomalies  none"


def test_a_file_that_is_nothing_of_ours(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image.write_bytes(b"\x7fELF" + bytes(60))
    assert call(inspect, image) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"Error: {image}: neither a save file, nor a relocation")


def test_type_overrides_what_the_file_says(facts: Any) -> None:
    capture = stream(HVM)
    found, code = facts(capture[body_offset(capture) :], "--type", "pv")
    assert (code, found["whole"]) == (1, False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreHypervisor]:
    hypervisor = StoreHypervisor(Paths(tmp_path / "root"))
    yield hypervisor
    hypervisor.close()


def guest_directory(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "root").rglob("state.json")
    return found.parent


def receive(session: RestoreSession, source: BytesSource, kind: GuestType) -> None:
    drive(decode_body(kind), source, session)


def test_a_guest_of_the_store_has_the_sum_of_its_stream(
    store: StoreHypervisor, tmp_path: Path, facts: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    relocated, _ = facts(stream(PV64))
    source = BytesSource(stream(PV64)[len(REQUEST) :])
    config = DomainConfig.parse(drive(read_envelope(), source, NoGuest()).config_bytes)
    with store.restore(config) as session:
        receive(session, source, GuestType.PV)
        session.complete()
    assert call(inspect, guest_directory(tmp_path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["whole"]) == ("guest of the store", True)
    for same in ("memory", "guest", "stream"):
        assert found[same] == relocated[same]


def test_a_partial_guest_says_why_and_how_far(
    store: StoreHypervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = BytesSource(stream(HVM)[len(REQUEST) : 17_500_000])
    config = DomainConfig.parse(drive(read_envelope(), source, NoGuest()).config_bytes)
    with store.restore(config) as session:
        with pytest.raises(StreamTruncated):
            receive(session, source, GuestType.HVM)
        session.keep("the peer went away")
    assert call(inspect, guest_directory(tmp_path)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "End        KEPT IN PART"
    assert lines[-1].startswith("Anomalies  kept in part after 2 rounds, ")
    assert lines[-1].endswith(" pages: the peer went away")


def test_a_directory_that_is_no_guest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(inspect, tmp_path) == 1
    assert "state.json: No such file or directory" in capsys.readouterr().err
