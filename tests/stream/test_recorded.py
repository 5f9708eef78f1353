"""What real senders sent decodes to the guest they had, and survives being encoded again."""

from __future__ import annotations

import hashlib

import pytest

from tests import recorded
from tests.drive import Recorder, drive_bytes
from xendpy.guest.domain import GuestType
from xendpy.stream.legacy_dialect import DIALECTS
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.records import (
    HvmContext,
    HvmParams,
    OnlineVcpus,
    SharedInfo,
    StreamStart,
    TscInfo,
    UnmappedPfns,
    VcpuContext,
    VcpuContextKind,
)
from xendpy.stream.xend import decode_body

RELEASE = {recorded.PV64: "4.4", recorded.HVM: "4.4", recorded.PV32: "4.1"}
# Offset, width and value of pfn_to_mfn_frame_list_list at the sender: zero on the wire.
FRAME_LIST_LIST = {recorded.PV64: (3096, 8, 0x20197), recorded.PV32: (2320, 4, 0x20568)}
GONE = 0x345  # sent in the first round of the PV stream, unmapped when it ended


@pytest.fixture(scope="module", params=recorded.ALL)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def decoded(name: str) -> Recorder:
    recorder = Recorder()
    _, description = recorded.load(name)
    image = recorded.image(name)
    _, taken = drive_bytes(decode_body(GuestType(description["kind"])), image, recorder)
    assert taken == len(image)
    return recorder


def test_memory_is_what_the_sender_had(name: str, decoded: Recorder) -> None:
    _, description = recorded.load(name)
    expected = {int(pfn, 0): digest for pfn, digest in description["page_sha256"].items()}
    found = {pfn: hashlib.sha256(data).hexdigest() for pfn, data in decoded.memory.items()}
    assert found == expected
    runs = [range(first, first + count) for first, count in description["populated_runs"]]
    assert sorted(decoded.memory) == [pfn for run in runs for pfn in run]


def test_page_types_are_what_the_sender_had(name: str, decoded: Recorder) -> None:
    _, description = recorded.load(name)
    tables = {
        int(pfn, 0): table["level"] | (8 if table["pinned"] else 0)
        for pfn, table in description["page_tables"].items()
    }
    assert {pfn: kind for pfn, kind in decoded.types.items() if kind} == tables


def test_everything_else_is_what_the_sender_had(name: str, decoded: Recorder) -> None:
    _, description = recorded.load(name)
    tsc = description["tsc"]
    for record in decoded.records:
        match record:
            case StreamStart():
                assert record.p2m_size == description["p2m_size"]
            case TscInfo():
                assert (record.mode, record.khz, record.incarnation) == (
                    tsc["mode"],
                    tsc["khz"],
                    tsc["incarnation"],
                )
                assert record.nsec == int(tsc["nsec"], 0)
            case OnlineVcpus():
                assert record.ids == tuple(range(description["nvcpu"]))
            case VcpuContext(kind=VcpuContextKind.BASIC):
                vcpu = description["vcpus"][str(record.vcpu_id)]
                assert record.blob.hex() == vcpu["ctx_canonical_hex"]
            case VcpuContext(kind=VcpuContextKind.EXTENDED):
                vcpu = description["vcpus"][str(record.vcpu_id)]
                assert record.blob.hex() == vcpu["ext128_hex"]
            case SharedInfo():
                at, width, mfn = FRAME_LIST_LIST[name]
                page = bytearray(record.page)
                assert not any(page[at : at + width])
                page[at : at + width] = mfn.to_bytes(width, "little")
                assert hashlib.sha256(page).hexdigest() == description["shared_info_sha256"]
            case HvmContext():
                assert record.blob.hex() == description["hvm_context_hex"]


def test_hvm_parameters_are_what_the_sender_had() -> None:
    recorder = Recorder()
    drive_bytes(decode_body(GuestType.HVM), recorded.image(recorded.HVM), recorder)
    found = [pair for r in recorder.records if isinstance(r, HvmParams) for pair in r.params]
    expected = recorded.load(recorded.HVM)[1]["hvm_params"]
    # 2 is an event channel, 4 (PAE) travels in the configuration
    assert dict(found) == {int(k): int(v, 0) for k, v in expected.items() if k not in ("2", "4")}


def test_page_that_went_away_is_gone() -> None:
    recorder = Recorder()
    drive_bytes(decode_body(GuestType.PV), recorded.image(recorded.PV64), recorder)
    (unmapped,) = [r for r in recorder.records if isinstance(r, UnmappedPfns)]
    assert GONE in unmapped.pfns.tolist()
    assert GONE not in recorder.memory


def test_encoded_again_it_decodes_to_the_same(name: str, decoded: Recorder) -> None:
    _, description = recorded.load(name)
    guest = GuestType(description["kind"])
    for width in (8, 4):
        encoder = LegacyEncoder(DIALECTS[RELEASE[name]], guest, width)
        wire = b"".join(piece for r in decoded.records for piece in encoder.encode(r))
        again = Recorder()
        drive_bytes(decode_body(guest), wire, again)
        assert again.plain()[1:] == decoded.plain()[1:]
        start = again.records[0]
        assert isinstance(start, StreamStart)
        assert start.tool_width == width
