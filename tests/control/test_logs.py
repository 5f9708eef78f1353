from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from xendpy.control import logs


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def test_line_has_xends_format(tmp_path: Path) -> None:
    path = logs.set_up(tmp_path / "xen" / "xend.log", "INFO", environ={})
    logging.getLogger("xendpy.control.service").info("Xend Daemon %s", "started")
    logging.getLogger("xendpy.control.service").debug("not this")
    (line,) = path.read_text().splitlines()
    assert re.fullmatch(
        r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \d+\] INFO \(test_logs:\d+\) Xend Daemon started", line
    )
    assert path.stat().st_mode & 0o007 == 0


def test_log_is_rotated_at_a_mebibyte_and_five_are_kept(tmp_path: Path) -> None:
    path = logs.set_up(tmp_path / "xend.log", "INFO", environ={})
    for _ in range(16):
        logging.getLogger("x").info("%s", "y" * (1 << 19))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["xend.log", *(f"xend.log.{number}" for number in range(1, 6))]
    assert all(file.stat().st_size <= logs.MAX_BYTES for file in tmp_path.iterdir())
    assert path.name == "xend.log"


@pytest.mark.parametrize("variable", ["JOURNAL_STREAM", "NOTIFY_SOCKET"])
def test_journal_gets_priorities(variable: str, tmp_path: Path) -> None:
    stream = io.StringIO()
    logs.set_up(tmp_path / "xend.log", "TRACE", environ={variable: "x"}, stream=stream)
    logger = logging.getLogger("x")
    logger.critical("a")
    logger.error("b\nc")
    logger.warning("d")
    logger.info("e")
    logger.debug("f")
    logger.log(logs.TRACE, "g")
    starts = [line[:3] for line in stream.getvalue().splitlines()]
    assert starts == ["<2>", "<3>", "<3>", "<4>", "<6>", "<7>", "<7>"]
    assert "TRACE (test_logs:" in (tmp_path / "xend.log").read_text()


def test_terminal_gets_whole_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    logs.set_up(tmp_path / "xend.log", "INFO", console=True, environ={}, stream=stream)
    logging.getLogger("x").info("here")
    assert stream.getvalue() == (tmp_path / "xend.log").read_text()


def test_second_set_up_replaces_the_first(tmp_path: Path) -> None:
    logs.set_up(tmp_path / "a", "INFO", environ={})
    logs.set_up(tmp_path / "b", "INFO", environ={})
    logging.getLogger("x").info("here")
    assert (tmp_path / "a").read_text() == ""
    assert "here" in (tmp_path / "b").read_text()


def test_unusable_place_is_replaced_by_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("")
    path = logs.set_up(tmp_path / "file" / "xend.log", "INFO", environ={})
    logging.getLogger("x").info("here")
    assert path.name.endswith("-xend.log")
    assert "here" in path.read_text()


@pytest.mark.parametrize(
    ("name", "level"), [("INFO", 20), ("warn", 30), ("TRACE", 9), ("DEBUG", 10), ("odd", 10)]
)
def test_level_is_xends(name: str, level: int) -> None:
    assert logs.level_of(name) == level


def test_tail_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "xend.log"
    assert logs.tail(path) == ""
    path.write_bytes(b"first\nsecond\nthird \xff\n")
    assert logs.tail(path) == "first\nsecond\nthird �\n"
    assert logs.tail(path, 12) == "third �\n"
    assert logs.tail(path, 3) == ""
