"""The order of records."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from xendpy.errors import RecordOrderError
from xendpy.guest.domain import GuestType
from xendpy.stream.order import LEGACY, LEGACY_ONCE, LIBXC, START, RecordOrder, Table
from xendpy.stream.records import HvmContext, OnlineVcpus, Pages, StreamStart, TscInfo


@pytest.mark.parametrize("guest", GuestType)
@pytest.mark.parametrize("tables", [LEGACY, LIBXC], ids=["legacy", "libxc"])
def test_every_state_is_reachable_and_leads_somewhere(
    tables: Mapping[GuestType, Table], guest: GuestType
) -> None:
    table = tables[guest]
    reached, todo = {START}, [START]
    while todo:
        for state in table[todo.pop()].values():
            if state not in reached:
                reached.add(state)
                todo.append(state)
    assert reached == set(table)
    assert [state for state in table if not table[state]] == ["the end"]


def test_decoding_names_record_state_and_offset() -> None:
    order = RecordOrder(LEGACY[GuestType.HVM], LEGACY_ONCE)
    with pytest.raises(RecordOrderError) as caught:
        order.decoding(Pages, 0x51)
    assert str(caught.value) == "Pages at 0x51: not expected after the start; expected StreamStart"
    assert order.state == START


def test_encoding_is_our_own_fault() -> None:
    order = RecordOrder(LEGACY[GuestType.PV], LEGACY_ONCE)
    order.encoding(StreamStart)
    with pytest.raises(AssertionError, match="HvmContext must not be encoded after the header"):
        order.encoding(HvmContext)


def test_some_records_come_once_and_others_again() -> None:
    order = RecordOrder(LEGACY[GuestType.HVM], LEGACY_ONCE)
    for kind in (StreamStart, TscInfo, TscInfo, OnlineVcpus, Pages):
        order.decoding(kind)
    with pytest.raises(RecordOrderError):
        order.decoding(OnlineVcpus)
