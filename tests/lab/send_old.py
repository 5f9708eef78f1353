"""Send a save file of xend's as an old xend would; runs in a domain 0 of the lab.

    python -m tests.lab.send_old HOST PORT RELEASE FILE [CUT]

CUT: the connection ends after so many bytes. Says what that xend's user would have seen.
"""

from __future__ import annotations

import mmap
import sys

from tests.peers.xend import Sender

TIMEOUT_S = 600.0


def main() -> int:
    """Send; 0 if the old xend would have called it a success."""
    host, port, release, path = sys.argv[1:5]
    cut = int(sys.argv[5]) if len(sys.argv) > 5 else None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as payload:
        sender = Sender((host, int(port)), release, timeout_s=TIMEOUT_S)
        report = sender.migrate(payload, cut=cut)  # type: ignore[arg-type]
    print(f"xend {release}: was told {report.reply!r}, sent {report.sent} bytes")
    print(f"then: {', '.join(report.steps)}")
    if report.shown:
        print(f"Error: {report.shown}")
    return 0 if report.succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
