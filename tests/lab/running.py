"""Programs of the lab that run in a domain 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.lab.session import Host, until

HOME = "/root/xendpy"  # where the tests lie
PYTHON = "/usr/lib/xendpy/bin/python -m tests.lab"


def run(host: Host, words: str) -> str:
    """Run a program of the lab to its end, whatever its status; return what it says."""
    return host.run(f"cd {HOME} && {PYTHON}.{words}", status=None, timeout_s=1200)


@contextmanager
def listening(host: Host, words: str, port: int) -> Iterator[Callable[[], str]]:
    """Run a program of the lab that listens; the yielded call ends it and returns what it said."""
    files = f"/root/{words.partition(' ')[0]}"
    host.run(
        f"(cd {HOME} && exec {PYTHON}.{words}) </dev/null >{files}.log 2>&1 & echo $! >{files}.pid"
    )
    until(lambda: f":{port}" in host.ask("ss -ltn"), f"{words} listens")

    def ended() -> str:
        host.ask(f"pid=$(cat {files}.pid); kill $pid; while kill -0 $pid; do sleep 0.1; done")
        return host.run(f"cat {files}.log")

    try:
        yield ended
    finally:
        host.ask(f"kill -KILL $(cat {files}.pid)")
