"""Which cpus of the host the vcpus of a guest may run on.

Sources: XendConfig.py (`cpus` of 3.1 - 4.4 is a text for all vcpus, or a list with one item for
each, and is kept as lists of numbers); 3.0.4 keeps one flat list of numbers for all vcpus.
"""

from __future__ import annotations

from xendpy import sxp

MAX_CPUS = 4096  # Xen's own limit, NR_CPUS: 4095
MAX_ENTRIES = 1 << 20  # of all vcpus together


def cpu_set(text: str) -> set[int]:
    """Return the cpus of a list like `0-3,^1,6`; later items override earlier ones.

    Raises:
        ValueError: an item is not a number or a range, or names a cpu that no host has.
    """
    cpus: set[int] = set()
    for item in filter(None, (item.strip() for item in text.split(","))):
        if item.startswith("^"):
            cpus.discard(_cpu(item[1:]))
            continue
        first, dash, last = item.partition("-")
        cpus.update(range(_cpu(first), _cpu(last if dash else first) + 1))
    return cpus


def _cpu(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 8 and int(text) < MAX_CPUS):
        raise ValueError(f"{text} is no cpu")
    return int(text)


def affinity(value: sxp.SxpValue, vcpus: int) -> tuple[tuple[int, ...], ...]:
    """Return the cpus of each vcpu, as `cpus` of xm says.

    One with none, and those after the last one, may run anywhere.

    Raises:
        ValueError: an item is not a number or a range, or there are too many.
    """
    if not isinstance(value, list):
        return (_row(str(value or "")),) * vcpus
    rows = []
    entries = 0
    for item in value[:vcpus]:
        rows.append(_row(",".join(map(str, item)) if isinstance(item, list) else str(item)))
        entries += len(rows[-1])
        if entries > MAX_ENTRIES:
            raise ValueError(f"more than {MAX_ENTRIES} cpus in all")
    return tuple(rows)


def _row(text: str) -> tuple[int, ...]:
    return tuple(sorted(cpu_set(text)))
