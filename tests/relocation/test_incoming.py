"""What two xendpy hosts agree on where one can do more than the other."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.streams import config
from xendpy import sxp
from xendpy.hypervisor.durable import Durable
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.journal import Journal
from xendpy.migration.reception import start
from xendpy.paths import Paths
from xendpy.relocation import incoming
from xendpy.relocation.channel import Channel
from xendpy.relocation.client import ask
from xendpy.relocation.gathering import Gathering
from xendpy.relocation.handshake import Ready
from xendpy.relocation.to_xendpy import reserve

ID = "ab" * 16
HOSTS = ("6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10", "7f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10")
COMMON = ("v1", "libxl", "streams", "xxh3", "zero")


@pytest.mark.parametrize("more", [("zstd",), ("from-a-later-release",)], ids=lambda more: more[0])
def test_a_target_that_can_do_less_takes_a_guest_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr(incoming, "FEATURES", (*COMMON, *more))
    opened = incoming.opening(ID, HOSTS[0], more)
    assert more[0] in opened.decode()
    monkeypatch.setattr(incoming, "FEATURES", COMMON)
    ours, theirs = socket.socketpair()
    with (
        Channel(ours, stall_timeout_s=10) as source,
        Channel(theirs, stall_timeout_s=10) as target,
        ThreadPoolExecutor(1) as pool,
    ):
        landed = pool.submit(_receive_dry, target, tmp_path)
        answer = ask(source, opened)
        assert isinstance(answer, Ready) and more[0] not in answer.text
        incoming.agree(source, opened, f"{answer.text}\n".encode())
        assert source.sums is not None
        reserve(source, {"dry_run": True}, config())
        assert landed.result(10) is None


def _receive_dry(channel: Channel, root: Path) -> object:
    store = StoreHypervisor(Paths(root))
    try:
        target = incoming.Target(
            hypervisor=store,
            journal=Journal(Paths(root).state_dir / "migrations", Durable(), time.time),
            host_id=HOSTS[1],
            peer="source",
            progress=start(ID, "source"),
            publish=lambda progress: None,
            began=lambda landing: None,
            preflight=lambda guest, facts, local: [],
            gathering=Gathering(),
        )
        line = channel.recv_line(1024, timeout_s=10)
        request = incoming.parse_opening(sxp.show(sxp.parse_one(line)))
        return incoming.receive_from_xendpy(channel, request, target)
    finally:
        store.close()
