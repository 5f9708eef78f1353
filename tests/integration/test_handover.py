"""Hand-overs between two daemons, broken at every step of the protocol; more in tests/soak."""

import pytest

from tests.soak import cases
from tests.soak.pair import Pair


@pytest.mark.timeout(1800)
def test_a_broken_handover_leaves_exactly_one_guest(tmp_path):
    with Pair(tmp_path) as pair:
        outcomes = {
            case.id: cases.run(pair, case).guest for case in cases.sample(cases.rehearse(pair))
        }
    # Killed before it released the guest, the source keeps it; after that the target has it.
    assert outcomes["source-journal-out-sending-after"] == "stayed"
    assert outcomes["source-journal-out-moved-after"] == "moved"
    assert outcomes["target-journal-in-owned-after"] == "moved"
    assert outcomes["cut-up-1"] == "stayed"
