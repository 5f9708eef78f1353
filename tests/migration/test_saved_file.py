from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.control.fakes import NR_PAGES, PAGE, FakeHypervisor, guest_config
from xendpy.errors import HypervisorError, MigrationAborted, StreamError, StreamTruncated
from xendpy.guest.domain import Domain
from xendpy.hypervisor.store import StoreHypervisor
from xendpy.migration.saved_file import Cancel, FileSink, restore_file, save_file
from xendpy.paths import Paths


def saved(tmp_path: Path) -> Path:
    hypervisor = FakeHypervisor()
    domain = hypervisor.add(guest_config("web1"))
    path = tmp_path / "web1.img"
    save_file(hypervisor, domain, path, checkpoint=False, cancel=Cancel())
    return path


def test_memory_comes_back_page_by_page(tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    domain = restore_file(hypervisor, saved(tmp_path), cancel=Cancel())
    assert domain.name == "web1"
    memory = hypervisor.restored.memory.reshape(NR_PAGES, PAGE)  # type: ignore[attr-defined]
    expected = (np.arange(NR_PAGES) & 0xFF).astype(np.uint8)
    expected[:16] = 0  # pfns that do not exist
    assert (memory == expected[:, None]).all()


def test_store_keeps_what_it_saved(tmp_path: Path) -> None:
    store = StoreHypervisor(Paths(tmp_path))
    first, second = tmp_path / "first", tmp_path / "second"
    os.rename(saved(tmp_path), first)
    domain = restore_file(store, first, cancel=Cancel())
    save_file(store, domain, second, checkpoint=False, cancel=Cancel())
    assert store.domains() == []
    assert second.read_bytes() == first.read_bytes()
    store.close()


@pytest.mark.parametrize("missing", [1, 4096, 4097, 1 << 20, 8_300_000])
def test_cut_file_leaves_nothing_in_the_store(missing: int, tmp_path: Path) -> None:
    path = saved(tmp_path)
    os.truncate(path, path.stat().st_size - missing)
    store = StoreHypervisor(Paths(tmp_path / "root"))
    with pytest.raises(StreamTruncated):
        restore_file(store, path, cancel=Cancel())
    assert store.domains() == []
    assert store.partials() == []
    assert restore_file(store, saved(tmp_path), cancel=Cancel()).name == "web1"
    store.close()


def test_other_file_is_refused_by_its_signature(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"#!/bin/sh\n" * 20)
    with pytest.raises(StreamError, match="not a valid guest state file"):
        restore_file(FakeHypervisor(), path, cancel=Cancel())


def test_link_is_followed_and_kept(tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    domain = hypervisor.add(guest_config("web1"))
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "web1.img")
    save_file(hypervisor, domain, link, checkpoint=True, cancel=Cancel())
    assert link.is_symlink()
    assert (tmp_path / "there" / "web1.img").read_bytes()[:16] == b"LinuxGuestRecord"


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_only_regular_files_are_replaced(kind: str, tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    domain = hypervisor.add(guest_config("web1"))
    path = tmp_path / "a"
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(HypervisorError, match="not a regular file"):
        save_file(hypervisor, domain, path, checkpoint=False, cancel=Cancel())
    assert hypervisor.sources[0].ended == ["resume"]


def test_full_disk_is_an_error_and_the_guest_goes_on(tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    domain = hypervisor.add(guest_config("web1"))

    def full(fd: int, pieces: object) -> int:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", full)
        with pytest.raises(HypervisorError, match="No space left on device"):
            save_file(hypervisor, domain, tmp_path / "a", checkpoint=False, cancel=Cancel())
    assert list(tmp_path.iterdir()) == []
    assert hypervisor.sources[0].ended == ["resume"]


def test_cancelled_restore_builds_nothing(tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    cancel = Cancel()
    cancel.cancel("shutdown")
    with pytest.raises(MigrationAborted, match="cancelled by shutdown"):
        restore_file(hypervisor, saved(tmp_path), cancel=cancel)
    assert hypervisor.guests == {}


def test_cancelled_save_resumes(tmp_path: Path) -> None:
    hypervisor = FakeHypervisor()
    domain: Domain = hypervisor.add(guest_config("web1"))
    cancel = Cancel()
    cancel.cancel("shutdown")
    with pytest.raises(MigrationAborted):
        save_file(hypervisor, domain, tmp_path / "a", checkpoint=False, cancel=cancel)
    assert hypervisor.sources[0].ended[-1] == "resume"
    assert list(tmp_path.iterdir()) == []


def test_sink_goes_on_after_a_short_write(tmp_path: Path) -> None:
    real = os.writev

    def short(fd: int, pieces: list[memoryview]) -> int:
        return real(fd, [pieces[0][:3]])

    fd = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", short)
        FileSink(fd).write([b"abcdefgh", b"", memoryview(b"ij"), b"k"])
    os.close(fd)
    assert (tmp_path / "a").read_bytes() == b"abcdefghijk"
