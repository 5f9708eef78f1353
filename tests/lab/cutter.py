"""Stand between two hosts and break one migration's connection; runs in a domain 0 of the lab.

    python -m tests.lab.cutter PORT HOST [DIRECTION unit|offset NUMBER]

Without a fault it only counts. Says on SIGTERM what has passed: how many lines and frames, how
many bytes, in each direction, and whether it has cut.
"""

from __future__ import annotations

import json
import signal
import sys

from tests.peers.proxy import CUT, Fault, Proxy

PORT = 8002


def main() -> None:
    """Relay until told to stop."""
    port, host = int(sys.argv[1]), sys.argv[2]
    proxy = Proxy((host, PORT), listen=("127.0.0.1", port))
    if len(sys.argv) > 3:
        direction, place, number = sys.argv[3], sys.argv[4], int(sys.argv[5])
        proxy.arm(Fault(CUT, direction, **{place: number}))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        signal.pause()
    finally:
        print(json.dumps({"units": proxy.units, "bytes": proxy.bytes, "cut": proxy.hurt.is_set()}))


if __name__ == "__main__":
    main()
