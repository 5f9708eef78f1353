"""A whole HVM guest in one sector of a disk: it counts, a line a second, to Xen's debug port.

A kernel would first have to unpack itself, which takes an emulated host minutes. What is written
to port 0xe9 stands in `xl dmesg`, and counting in memory shows that memory has moved.
"""

from __future__ import annotations

from pathlib import Path

DISK_BYTES = 1 << 20
LOADED_AT = 0x7C00
TEXT = b"TICK n=" + b"0" * 8 + b"\n\0"
LAST_DIGIT = TEXT.index(b"\n") - 1
# 8086; labels are offsets of the lines below. {text} and {last} are addresses.
CODE = (
    "31 c0 8e d8 8e d0",  # 00 xor ax,ax; mov ds,ax; mov ss,ax
    "bc 00 7c fc fb",  # 06 mov sp,7c00; cld; sti
    "be {last}",  # 0b again: mov si,last
    "fe 04 80 3c 3a",  # 0e carry: inc byte [si]; cmp byte [si],'9'+1
    "72 06",  # 13 jb print
    "c6 04 30 4e",  # 15 mov byte [si],'0'; dec si
    "eb f3",  # 19 jmp carry
    "be {text}",  # 1b print: mov si,text
    "ac 84 c0",  # 1e next: lodsb; test al,al
    "74 04",  # 21 jz rest
    "e6 e9 eb f7",  # 23 out e9,al; jmp next
    "b4 00 cd 1a 89 d3",  # 27 rest: int 1a, the clock's 18.2 ticks a second; mov bx,dx
    "f4 b4 00 cd 1a 29 da",  # 2d sleep: hlt; int 1a; sub dx,bx
    "83 fa 12 72 f4",  # 34 cmp dx,18; jb sleep
    "eb d0",  # 39 jmp again
)
CODE_BYTES = 0x3B


def write(target: Path) -> None:
    """Write the disk."""
    text = LOADED_AT + CODE_BYTES
    places = {"text": text, "last": text + LAST_DIGIT}
    words = {name: place.to_bytes(2, "little").hex(" ") for name, place in places.items()}
    code = bytes.fromhex(" ".join(CODE).format(**words))
    assert len(code) == CODE_BYTES
    sector = (code + TEXT).ljust(510, b"\0") + b"\x55\xaa"
    target.write_bytes(sector.ljust(DISK_BYTES, b"\0"))
