"""What a guest's cpuid shows: xend's `(cpuid ((1 ((ecx xxxx...)))))` as xl's and libxl's.

Sources: create.py, Xen 4.4; xl.cfg(5) of Xen 4.17, whose older syntax is xend's; libxl_cpuid.c's
JSON. A register is 32 characters, the highest bit first: 0, 1, x (as this host), k, s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xendpy import sxp
from xendpy.errors import DomainError

REGISTERS = ("eax", "ebx", "ecx", "edx")
INPUT = re.compile(r"(0x[0-9A-Fa-f]{1,8}|\d{1,10})(?:,(0x[0-9A-Fa-f]{1,8}|\d{1,10}))?")
BITS = re.compile(r"[01xks]{32}|0x[0-9A-Fa-f]{1,8}")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One input of the instruction, and the registers that are not as this host has them."""

    leaf: int
    subleaf: int | None
    registers: Mapping[str, str]


def read_cpuid(guest: str, value: sxp.SxpValue) -> tuple[Leaf, ...]:
    """Return xend's list of leaves.

    Raises:
        DomainError: one is not understood.
    """
    rows = value if isinstance(value, list) else []
    return tuple(_leaf(guest, row) for row in rows)


def _leaf(guest: str, row: sxp.SxpValue) -> Leaf:
    match row:
        case [str(said), list(pairs)] if found := INPUT.fullmatch(said):
            registers = {
                str(name): _bits(str(bits))
                for name, bits in (pair for pair in pairs if isinstance(pair, list))
                if name in REGISTERS and isinstance(bits, str) and BITS.fullmatch(bits)
            }
            if len(registers) == len(pairs):
                subleaf = int(found[2], 0) if found[2] else None
                return Leaf(int(found[1], 0), subleaf, registers)
    raise DomainError(guest, f"cpuid {sxp.show(row)} is not understood")


def _bits(text: str) -> str:
    return f"{int(text, 16):032b}" if text.startswith("0x") else text


def as_cfg(leaves: Sequence[Leaf]) -> Iterator[str]:
    """Yield the entries of xl.cfg's list."""
    for leaf in leaves:
        place = f"{leaf.leaf:#x}" + ("" if leaf.subleaf is None else f",{leaf.subleaf:#x}")
        registers = ",".join(f"{name}={bits}" for name, bits in leaf.registers.items())
        yield f"{place}:{registers}"


def as_json(leaves: Sequence[Leaf]) -> list[dict[str, Any]]:
    """Return libxl's list."""
    return [
        {
            "leaf": leaf.leaf,
            **({} if leaf.subleaf is None else {"subleaf": leaf.subleaf}),
            **leaf.registers,
        }
        for leaf in leaves
    ]


def as_sxp(said: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> sxp.SxpList:
    """Return libxl's list as xend's.

    Debian's xl of 4.17.7, as 4.18's, prints it within `{"cpuid": [...], "msr": [...]}`; what is
    said of MSRs is in the stream as well, and has no place in xend's configuration.
    """
    entries = said.get("cpuid", ()) if isinstance(said, Mapping) else said
    rows: sxp.SxpList = []
    for entry in entries:
        place = str(entry["leaf"])
        if entry.get("subleaf") is not None:
            place += f",{entry['subleaf']}"
        rows.append([place, [[name, str(entry[name])] for name in REGISTERS if entry.get(name)]])
    return rows
