"""One target under atheris, in a process of its own; see run.py."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Fuzz the target that the command line names, with libFuzzer's options behind it."""
    import atheris

    with atheris.instrument_imports(include=["xendpy"]):
        from tests.fuzz.targets import TARGETS, inputs
    name, options = sys.argv[1], sys.argv[2:]
    directory = tempfile.mkdtemp(prefix="xendpy-fuzz-")
    for number, data in enumerate(inputs(name)):
        (Path(directory) / f"seed-{number}").write_bytes(data)
    run = TARGETS[name].run
    # atheris takes the name of this function for its own messages, and no result.
    atheris.Setup([sys.argv[0], *options, directory], lambda data: run(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
