"""The options of `xm migrate` that are not xm's own, as data."""

from __future__ import annotations

from typing import Final

from xendpy.cli.options import Option

MIGRATE_OPTIONS: Final = (
    Option(
        long="max-downtime",
        metavar="MS",
        help="Stop the guest when what is left takes so long at most (300).",
    ),
    Option(long="max-iterations", metavar="N", help="Iterations before giving up (29)."),
    Option(
        long="on-no-convergence",
        metavar="pause|cancel",
        help="What a guest gets that writes faster than the link carries: stop it and copy the "
        "rest (pause), or leave it here (cancel).",
    ),
    Option(long="timeout", metavar="S", help="Seconds after which it counts as not converging."),
    Option(long="bandwidth", metavar="MiB/s", help="Limit while the guest runs."),
    Option(
        long="peer-release",
        metavar="R",
        help="What an old xend at the target is: 3.1, 3.2, 3.4, 4.0, 4.1 or 4.2+.",
    ),
    Option(
        long="peer-tools",
        metavar="BITS",
        help="How wide the tools of that xend are, 32 or 64 bits: what `getconf LONG_BIT` says "
        "there.",
    ),
    Option(
        long="lossy",
        help="Leave out what no old xend can restore of a guest from Xen 4.6 or newer: its "
        "vcpus' model-specific registers.",
    ),
    Option(
        long="compress",
        help="Compress with zstd where that is worth it and the peer can: pays on a slow link.",
    ),
    Option(
        long="streams",
        metavar="N",
        help="Connections for the memory, 1 to 16 (1): pays with --ssl, and where one alone is "
        "slower than the link.",
    ),
    Option(long="progress", help="Print a line a second, and a summary."),
    Option(
        long="json",
        help="Print a JSON object a second, with the fields of QEMU's query-migrate: status, "
        "total-time, setup-time, downtime, expected-downtime, error-desc, and in ram: "
        "transferred, remaining, total, normal, normal-bytes, mbps, dirty-pages-rate, "
        "dirty-sync-count, page-size, pages-per-second. With --dry-run: the checks.",
    ),
    Option(long="dry-run", help="Say what both sides would find, and send nothing."),
)
