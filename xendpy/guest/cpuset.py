"""Which cpus of the host the vcpus of a guest may run on.

Sources: XendConfig.py (`cpus` of 3.1 - 4.4 is a text for all vcpus, or a list with one item for
each, and is kept as lists of numbers); 3.0.4 keeps one flat list of numbers for all vcpus.
"""

from __future__ import annotations

from xendpy import sxp


def cpu_set(text: str) -> set[int]:
    """Return the cpus of a list like `0-3,^1,6`; later items override earlier ones.

    Raises:
        ValueError: an item is not a number or a range.
    """
    cpus: set[int] = set()
    for item in filter(None, (item.strip() for item in text.split(","))):
        if item.startswith("^"):
            cpus.discard(int(item[1:]))
            continue
        first, dash, last = item.partition("-")
        cpus.update(range(int(first), int(last if dash else first) + 1))
    return cpus


def affinity(value: sxp.SxpValue, vcpus: int) -> list[list[int]]:
    """Return the cpus of each vcpu, as `cpus` of xm says.

    One with an empty list, and those after the last one, may run anywhere.

    Raises:
        ValueError: an item is not a number or a range.
    """
    if not isinstance(value, list):
        return [sorted(cpu_set(str(value or ""))) for _ in range(vcpus)]
    return [sorted(cpu_set(_text(item))) for item in value[:vcpus]]


def _text(item: sxp.SxpValue) -> str:
    return ",".join(map(str, item)) if isinstance(item, list) else str(item)
