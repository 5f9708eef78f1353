"""A whole HVM guest in one sector of a disk: it counts, a line a second, to Xen's debug port.

A kernel would first have to unpack itself, which takes an emulated host minutes. What is written
to port 0xe9 stands in `xl dmesg`, and counting in memory shows that memory has moved. Like a
kernel it leaves the BIOS behind: protected mode, a page table and an interrupt of its own.
"""

from __future__ import annotations

from pathlib import Path

DISK_BYTES = 1 << 20
LOADED_AT = 0x7C00
TEXT = b"TICK n=" + b"0" * 8 + b"\n\0"
LAST_DIGIT = TEXT.index(b"\n") - 1
# Null, code and data: flat, 4 GiB.
SEGMENTS = (0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF)
IDT, IDT_LIMIT = 0x1000, 0x7FF
# Offsets of the lines below; {text} and the like are addresses, little-endian.
CODE = (
    "fa 31 c0 8e d8",  # 00 cli; xor ax,ax; mov ds,ax
    "0f 01 16 {gdtr}",  # 05 lgdt [gdtr]
    "0f 20 c0 0c 01 0f 22 c0",  # 0a mov eax,cr0; or al,1 (PE); mov cr0,eax
    "ea 17 7c 08 00",  # 12 jmp 8:7c17; 32 bits from here on
    "b0 10 8e d8 8e d0",  # 17 mov al,10; mov ds,eax; mov ss,eax
    "bc 00 7c 00 00",  # 1d mov esp,7c00
    "bf 00 20 00 00",  # 22 mov edi,page directory
    "c6 07 83",  # 27 mov byte [edi],83: the first 4 MiB are one page, itself
    "0f 22 df",  # 2a mov cr3,edi
    "0f 20 e0 0c 10 0f 22 e0",  # 2d mov eax,cr4; or al,10 (PSE); mov cr4,eax
    "0f 20 c0 0d 00 00 00 80",  # 35 mov eax,cr0; or eax,80000000 (PG)
    "0f 22 c0",  # 3d mov cr0,eax
    "b0 11 e6 20 b0 20 e6 21",  # 40 the interrupt controller: begin; vectors from 20,
    "b0 04 e6 21 b0 01 e6 21",  # 48 a slave at 2, 8086 mode,
    "b0 fe e6 21",  # 50 and only the clock
    "c7 05 00 11 00 00 98 7c 08 00",  # 54 mov dword [IDT + 8 * 20],8:7c98
    "66 c7 05 04 11 00 00 00 8e",  # 5e mov word [IDT + 8 * 20 + 4],8e00: an interrupt gate
    "0f 01 1d {idtr} 00 00",  # 67 lidt [idtr]
    "fb",  # 6e sti
    "be {last} 00 00",  # 6f again: mov esi,last
    "fe 06 80 3e 3a",  # 74 carry: inc byte [esi]; cmp byte [esi],'9'+1
    "72 06",  # 79 jb print
    "c6 06 30 4e",  # 7b mov byte [esi],'0'; dec esi
    "eb f3",  # 7f jmp carry
    "be {text} 00 00",  # 81 print: mov esi,text
    "ac 84 c0",  # 86 next: lodsb; test al,al
    "74 04",  # 89 jz rest
    "e6 e9 eb f7",  # 8b out e9,al; jmp next
    "b1 12",  # 8f rest: mov cl,18: the clock ticks 18.2 times a second
    "f4 fe c9 75 fb",  # 91 sleep: hlt; dec cl; jnz sleep
    "eb d7",  # 96 jmp again
    "50 b0 20 e6 20 58 cf",  # 98 the clock: push eax; mov al,20; out 20,al; pop eax; iretd
)
CODE_BYTES = 0x9F


def write(target: Path) -> None:
    """Write the disk."""
    segments = b"".join(segment.to_bytes(8, "little") for segment in SEGMENTS)
    gdt = LOADED_AT + CODE_BYTES
    gdtr = gdt + len(segments)
    idtr = gdtr + 6
    text = idtr + 6
    places = {"gdtr": gdtr, "idtr": idtr, "text": text, "last": text + LAST_DIGIT}
    words = {name: place.to_bytes(2, "little").hex(" ") for name, place in places.items()}
    code = bytes.fromhex(" ".join(CODE).format(**words))
    assert len(code) == CODE_BYTES
    tables = segments + _table(len(segments) - 1, gdt) + _table(IDT_LIMIT, IDT)
    sector = (code + tables + TEXT).ljust(510, b"\0") + b"\x55\xaa"
    target.write_bytes(sector.ljust(DISK_BYTES, b"\0"))


def _table(limit: int, address: int) -> bytes:
    """Return what lgdt and lidt read."""
    return limit.to_bytes(2, "little") + address.to_bytes(4, "little")
