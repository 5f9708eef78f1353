"""One target under atheris, in a process of its own; see run.py."""

from __future__ import annotations

import sys
import time
from pathlib import Path

SLOW_S = 1  # of the processor's time: a busy machine makes no input slow


def main() -> None:
    """Fuzz the target that the command line names, into the directory behind it.

    The rest of the command line is libFuzzer's.
    """
    import atheris

    with atheris.instrument_imports(include=["xendpy"]):
        from tests.fuzz.targets import TARGETS, inputs
    name, directory, options = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    for number, data in enumerate(inputs(name)):
        (directory / f"seed-{number}").write_bytes(data)
    run = TARGETS[name].run

    # atheris takes the name of this function for its own messages, and no result.
    def one(data: bytes) -> None:
        began_s = time.process_time()
        run(data)
        assert time.process_time() - began_s < SLOW_S, "slow"

    atheris.Setup([sys.argv[0], *options, str(directory)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
