from typing import get_args

import numpy as np
import pytest

from tests.guests import closing, opening, plain, u64
from xendpy.errors import HypervisorError
from xendpy.hypervisor import recordfile
from xendpy.stream import records as r

RECORDS: list[r.Record] = [
    *opening(),
    *closing([3, 1 << 40]),
    r.PvInfo(guest_width=4, pt_levels=0, has_ext_info=False),
    r.StaticDataEnd(),
    r.HvmParams(((12, 0xFEFFE000), (1, (1 << 64) - 1))),
    r.HvmContext(bytes(range(256))),
    r.Toolstack(b""),
    r.EmulatorXenstore(1, 2, b"key\0value\0"),
    r.EmulatorContext(r.EmulatorSignature.XEND, b"QEVM", 3, 4),
    r.CpuidPolicy(b"\xff" * 24),
    r.MsrPolicy(b"\0" * 16),
    r.Checkpoint(),
]


def write(path, records) -> bytes:
    data = recordfile.MAGIC + b"".join(map(recordfile.encode, records))
    path.write_bytes(data)
    return data


def test_every_stored_record_loads_back_equal(tmp_path):
    assert {type(record) for record in RECORDS} == set(recordfile.NUMBERS)
    write(tmp_path / "records", RECORDS)
    assert plain(recordfile.load(tmp_path / "records")) == plain(RECORDS)


def test_all_records_are_stored_but_pages_and_marks():
    unstored = {cls for cls in get_args(r.Record) if cls not in recordfile.NUMBERS}
    assert unstored == {r.Pages, r.Verify, r.Ending, r.End}


def test_the_form_on_disk_does_not_change():
    assert recordfile.encode(r.HvmContext(b"ab")) == (b"\x08\0\0\0\x03\0\0\0\x02\0\0\0[2]ab")
    assert recordfile.encode(r.UnmappedPfns(u64(5))) == (
        b"\x09\0\0\0\x03\0\0\0\x08\0\0\0[8]\x05\0\0\0\0\0\0\0"
    )


def test_loaded_pfns_are_uint64(tmp_path):
    write(tmp_path / "records", [r.UnmappedPfns(u64(1, 2))])
    (loaded,) = recordfile.load(tmp_path / "records")
    assert isinstance(loaded, r.UnmappedPfns) and loaded.pfns.dtype == np.uint64


def test_a_file_cut_anywhere_inside_a_record_is_refused(tmp_path):
    path = tmp_path / "records"
    data = write(path, [r.HvmContext(b"abc")])
    for length in [*range(len(recordfile.MAGIC)), *range(len(recordfile.MAGIC) + 1, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(HypervisorError):
            recordfile.load(path)


BAD = [
    ("other magic", b"xendpy records 2"),
    ("unknown type", recordfile.MAGIC + b"\x63\0\0\0\x02\0\0\0\0\0\0\0[]"),
    ("too few fields", recordfile.MAGIC + b"\x08\0\0\0\x02\0\0\0\0\0\0\0[]"),
    ("blob left over", recordfile.MAGIC + b"\x08\0\0\0\x03\0\0\0\x02\0\0\0[1]ab"),
    ("not JSON", recordfile.MAGIC + b"\x08\0\0\0\x03\0\0\0\0\0\0\0{2]"),
]


@pytest.mark.parametrize("data", [row[1] for row in BAD], ids=[row[0] for row in BAD])
def test_a_damaged_file_is_refused(tmp_path, data):
    (tmp_path / "records").write_bytes(data)
    with pytest.raises(HypervisorError, match="records"):
        recordfile.load(tmp_path / "records")
