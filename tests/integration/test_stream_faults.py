"""An old sender's stream, cut, damaged and trickled at the borders of its records.

Every fault at every border is in tests/soak.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.peers.relocation_host import receiving
from tests.soak import records
from tests.soak.records import Stream


@pytest.mark.parametrize("stream", records.made(), ids=lambda stream: stream.name)
async def test_one_owner_whatever_happens_at_a_record_s_border(
    tmp_path: Path, stream: Stream
) -> None:
    kinds = len(records.faults(stream)) // len(records.borders(stream))
    # Another kind at each border, and all of them over the stream.
    chosen = records.faults(stream)[:: kinds + 1]
    assert len({(fault.how, fault.flip) for fault in chosen}) == kinds
    async with records.hasty(tmp_path) as host:
        became = [
            await records.hurt(host, stream, fault, number)
            for number, fault in enumerate(chosen, 1)
        ]
    assert {"refused", "kept"} <= set(became)


@pytest.mark.parametrize(
    "stream", [*records.made(), *records.real()], ids=lambda stream: stream.name
)
async def test_a_stream_may_trickle_across_every_border(tmp_path: Path, stream: Stream) -> None:
    async with receiving(tmp_path / "trickled") as host:
        answer = await asyncio.to_thread(records.trickle, host.address, stream)
        await host.ended()
    async with receiving(tmp_path / "sent") as host:
        fault = records.Fault(records.SENT, 0)  # flips nothing
        await asyncio.to_thread(records._send, host.address, stream, fault)
        await host.ended()
    assert answer == b"(ready receive)\n(ok)\n"
    trickled = records.memory(tmp_path / "trickled", stream)
    assert trickled == records.memory(tmp_path / "sent", stream)
    assert len(trickled) > 100
