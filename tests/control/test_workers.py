from __future__ import annotations

import asyncio
import threading

import pytest

from xendpy.control.operations import Operations
from xendpy.control.workers import Workers
from xendpy.errors import DomainStateError


async def test_answer_and_error_come_back(workers: Workers) -> None:
    assert await workers.quick(divmod, 7, 2) == (3, 1)
    assert await workers.quick(int, "11", base=2) == 3
    with pytest.raises(ZeroDivisionError):
        await workers.quick(divmod, 7, 0)


async def test_quick_questions_do_not_wait_for_long_work() -> None:
    workers = Workers(long=1)
    release = threading.Event()
    work = [asyncio.create_task(workers.long(release.wait, release.set)) for _ in range(3)]
    async with asyncio.timeout(80):
        assert await workers.quick(len, "abc") == 3
    release.set()
    assert await asyncio.gather(*work) == [True] * 3
    workers.close()


async def test_cancelled_work_is_told_and_waited_for(workers: Workers) -> None:
    started, told, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        assert told.wait(80)
        ended.set()
        raise OSError("nobody hears this")

    task = asyncio.create_task(workers.long(work, told.set))
    assert await asyncio.to_thread(started.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


def test_guest_has_one_operation_at_a_time() -> None:
    operations = Operations()
    with operations.begin("u1", "web1", "being saved"):
        assert operations.of("u1") == "being saved"
        with (
            pytest.raises(DomainStateError, match="Domain 'web1' is being saved") as caught,
            operations.begin("u1", "web1", "being destroyed"),
        ):
            raise AssertionError("two at a time")
        assert caught.value.actual == "being saved"
        with operations.begin("u2", "web2", "being destroyed"):
            assert [item.name for item in operations.all()] == ["web1", "web2"]
        assert operations.of("u2") == ""
    assert operations.all() == []


def test_operation_ends_with_its_failure() -> None:
    operations = Operations()
    with pytest.raises(OSError), operations.begin("u1", "web1", "being saved"):
        raise OSError
    assert operations.of("u1") == ""
