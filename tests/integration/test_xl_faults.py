"""An xl that fails, hangs or is gone while guests come in and are saved; only xl is a fake."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.peers.fake_xl import FakeGuest, FakeXl
from tests.peers.relocation_host import converse
from tests.peers.xend import Report, Sender
from tests.peers.xl_host import XlHost, listening
from tests.streams import config, entries, envelope, pv_image
from xendpy.errors import HypervisorError
from xendpy.hypervisor import xlrestore, xlsave
from xendpy.hypervisor.pipes import PipeReader, PipeWriter
from xendpy.migration.saved_file import Cancel, restore_file, save_file

RUNS = "-b----"
# More than a pipe and the socket's buffers hold.
IMAGE = pv_image([entries(range(2048)), entries(range(9), 1), entries([3], 2)], p2m_size=2048)
BUFFER_BYTES = 32 << 10


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every deadline for xl a short one."""
    monkeypatch.setattr(xlrestore, "BUILD_S", 0.5)
    monkeypatch.setattr(xlrestore, "CLEAN_S", 0.5)
    monkeypatch.setattr(xlsave, "GIVE_UP_S", 0.5)
    for pipe in (PipeReader, PipeWriter):
        monkeypatch.setitem(pipe.__init__.__kwdefaults__, "stall_s", 1.0)  # type: ignore[misc]


def wire(name: str = "web1", number: int = 1) -> bytes:
    raw = config(name, uuid=f"00000000-0000-4000-8000-{number:012}", memory=8)
    return envelope(raw.replace(b"(bridge xenbr0)", b"")) + IMAGE.wire


async def sent(host: XlHost, data: bytes) -> Report:
    sender = Sender(("127.0.0.1", host.port), buffer_bytes=BUFFER_BYTES)
    report = await asyncio.to_thread(sender.migrate, data)
    await host.ended()
    return report


def break_off(xl: FakeXl) -> None:
    xl.die_after = 1 << 18


def fail_at_the_end(xl: FakeXl) -> None:
    xl.refuse["restore"] = "libxl: error: cannot add device model\n"


def read_nothing(xl: FakeXl) -> None:
    xl.hang.add("deaf")


def never_end(xl: FakeXl) -> None:
    xl.hang.add("restore")


def be_gone(xl: FakeXl) -> None:
    xl.gone = True


def list_nothing(xl: FakeXl) -> None:
    xl.hang.add("list")


def heal(xl: FakeXl) -> None:
    xl.die_after, xl.gone = None, False
    xl.refuse.clear()
    xl.hang.clear()


RESTORES = [
    # what xl does, whether the sender hears of it in time, what its user is shown
    (break_off, True, "restore -p /dev/stdin failed with status 3"),
    (fail_at_the_end, False, ""),
    (read_nothing, True, "xl took nothing for 1 s|took longer than"),
    (never_end, False, ""),
    (be_gone, True, "/usr/sbin/xl: No such file or directory"),
    (list_nothing, True, "xl list took longer than 60 s"),
]


@pytest.mark.parametrize(
    ("spoil", "in_time", "shown"), RESTORES, ids=[row[0].__name__ for row in RESTORES]
)
async def test_a_guest_that_xl_does_not_build_is_not_lost(
    tmp_path: Path, spoil: Callable[[FakeXl], None], in_time: bool, shown: str
) -> None:
    host = XlHost(tmp_path)
    try:
        async with listening(host, buffer_bytes=BUFFER_BYTES):
            spoil(host.tool)
            report = await sent(host, wire())
            assert report.guest_lives is in_time
            assert re.search(shown, report.shown), report.shown
            heal(host.tool)
            assert host.guests == {}
            kept = list((tmp_path / "var/lib/xend/incoming").glob("*"))
            if not in_time:
                (file,) = kept
                assert file.suffix == ".save"
                restore_file(host.hypervisor, file, cancel=Cancel())
                assert list(host.guests) == ["web1"]
            address = ("127.0.0.1", host.port)
            answer = await asyncio.to_thread(
                converse, address, b"help\nquit\n", half_close=False, wait_s=40
            )
            assert answer.startswith(b"(ok (help")
            good = await sent(host, wire("web2", 2))
            assert not good.guest_lives
            assert host.guests["web2"] == RUNS
    finally:
        host.close()


class Spoilt(FakeXl):
    """An xl that fails at a verb once it has a guest."""

    def __init__(self, verb: str) -> None:
        super().__init__()
        self._verb = verb

    def add(self, *args: Any, **more: Any) -> FakeGuest:
        self.refuse[self._verb] = "libxl: error: xenstore is busy\n"
        return super().add(*args, **more)


@pytest.mark.parametrize("verb", ["info", "unpause"])
async def test_a_guest_that_xl_does_not_start_is_told_of(
    tmp_path: Path, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = XlHost(tmp_path, tool=Spoilt(verb))
    try:
        async with listening(host):
            report = await sent(host, wire())
        assert not report.guest_lives
        assert host.guests == {"web1": "--p---"}
        assert re.search("web1 has come .* xenstore is busy; then xm unpause web1", caplog.text)
        heal(host.tool)
        host.hypervisor.unpause(host.hypervisor.find("web1"))
        assert host.guests == {"web1": RUNS}
    finally:
        host.close()


def refuse(xl: FakeXl) -> None:
    xl.refuse["save"] = "libxl: error: guest did not acknowledge suspend request\n"


def be_mute(xl: FakeXl) -> None:
    xl.hang.add("mute")


def never_end_a_save(xl: FakeXl) -> None:
    xl.hang.add("save")


SAVES = [
    (refuse, "guest did not acknowledge suspend request"),
    (be_mute, "xl wrote nothing for 1 s"),
    (never_end_a_save, r"took longer than 0\.5 s"),
]


@pytest.mark.parametrize(("spoil", "text"), SAVES, ids=[row[0].__name__ for row in SAVES])
def test_a_guest_that_xl_does_not_save_goes_on(
    tmp_path: Path, spoil: Callable[[FakeXl], Any], text: str
) -> None:
    host = XlHost(tmp_path / "root")
    try:
        domain = host.start()
        spoil(host.tool)
        path = tmp_path / "web01.sav"
        with pytest.raises(HypervisorError, match=text):
            save_file(host.hypervisor, domain, path, checkpoint=False, cancel=Cancel())
        assert host.guests == {"web01": RUNS}
        assert not path.exists()
        heal(host.tool)
        save_file(host.hypervisor, domain, path, checkpoint=False, cancel=Cancel())
        assert host.guests == {}
        restore_file(host.hypervisor, path, cancel=Cancel())
        assert list(host.guests) == ["web01"]
    finally:
        host.close()


def test_a_guest_stays_where_xl_is_gone(tmp_path: Path) -> None:
    host = XlHost(tmp_path / "root")
    try:
        domain = host.start()
        host.tool.gone = True
        path = tmp_path / "web01.sav"
        with pytest.raises(HypervisorError, match="No such file or directory"):
            save_file(host.hypervisor, domain, path, checkpoint=False, cancel=Cancel())
        assert host.guests == {"web01": RUNS}
        assert not path.exists()
    finally:
        host.close()
