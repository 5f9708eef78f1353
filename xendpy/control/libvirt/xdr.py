"""XDR as libvirt's messages use it: big-endian, padded to four bytes (RFC 4506).

Every length meets its limit before it is used; a message that is too short or has bytes left over
is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import TypeAlias, TypeVar

from xendpy.errors import RpcError

T = TypeVar("T")

INVALID_ARG = 8  # VIR_ERR_INVALID_ARG
MAX_STRING = 4 << 20  # REMOTE_STRING_MAX
MAX_LIST = 16384  # REMOTE_DOMAIN_LIST_MAX and its like
UUID_BYTES = 16


class Kind(IntEnum):
    """virTypedParameterType, as far as it is written here."""

    INT = 1
    UINT = 2
    # 3 llong
    ULLONG = 4
    # 5 double, 6 boolean, 7 string


Param: TypeAlias = tuple[str, Kind, int]


class Reader:
    """Takes a message's arguments apart."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise RpcError(INVALID_ARG, "the message is too short for its procedure")
        self._at += count
        return piece

    def i32(self) -> int:
        return int.from_bytes(self._take(4), "big", signed=True)

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def opaque(self, limit: int = MAX_STRING) -> bytes:
        """Return bytes of a length that comes first."""
        length = self.u32()
        if length > limit:
            raise RpcError(INVALID_ARG, f"{length} bytes are more than the {limit} allowed")
        data = self._take(length)
        self._take(-length % 4)
        return data

    def string(self) -> str:
        """Return a string that is not null."""
        return self.opaque().decode("utf-8", "replace")

    def optional(self, read: Callable[[], T]) -> T | None:
        """Return what `read` gives, or None where the pointer is null."""
        return read() if self.u32() else None

    def opt_string(self) -> str | None:
        return self.optional(self.string)

    def uuid(self) -> str:
        digits = self._take(UUID_BYTES).hex()
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

    def domain(self) -> tuple[str, str, int]:
        """Return name, uuid and id of a `nonnull_domain`."""
        return self.string(), self.uuid(), self.i32()

    def pool(self) -> tuple[str, str]:
        return self.string(), self.uuid()

    def volume(self) -> tuple[str, str, str]:
        """Return pool, name and key of a `nonnull_storage_vol`."""
        return self.string(), self.string(), self.string()

    def items(self, read: Callable[[], T]) -> list[T]:
        """Return an array whose length comes first."""
        count = self.u32()
        if count > MAX_LIST:
            raise RpcError(INVALID_ARG, f"{count} items are more than the {MAX_LIST} allowed")
        return [read() for _ in range(count)]

    def end(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            left = len(self._data) - self._at
            raise RpcError(INVALID_ARG, f"{left} bytes are left over behind the arguments")


class Writer:
    """Puts a message's body together; methods return the writer."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def data(self) -> bytes:
        return b"".join(self._parts)

    def i32(self, *values: int) -> Writer:
        self._parts.append(struct.pack(f">{len(values)}i", *values))
        return self

    def u32(self, *values: int) -> Writer:
        self._parts.append(struct.pack(f">{len(values)}I", *values))
        return self

    def u64(self, *values: int) -> Writer:
        self._parts.append(struct.pack(f">{len(values)}Q", *values))
        return self

    def opaque(self, data: bytes) -> Writer:
        self._parts += [struct.pack(">I", len(data)), data, bytes(-len(data) % 4)]
        return self

    def string(self, text: str) -> Writer:
        return self.opaque(text.encode("utf-8", "replace"))

    def opt_string(self, text: str | None) -> Writer:
        return self.u32(0) if text is None else self.u32(1).string(text)

    def uuid(self, text: str) -> Writer:
        self._parts.append(bytes.fromhex(text.replace("-", "")))
        return self

    def domain(self, name: str, uuid: str, domid: int | None) -> Writer:
        """Add a `nonnull_domain`; one that is not live has the id -1."""
        return self.string(name).uuid(uuid).i32(-1 if domid is None else domid)

    def strings(self, texts: Iterable[str]) -> Writer:
        listed = list(texts)
        self.u32(len(listed))
        for text in listed:
            self.string(text)
        return self

    def chars(self, text: str, count: int) -> Writer:
        """Add a `char[count]`: XDR gives each character four bytes."""
        data = text.encode("ascii", "replace")[: count - 1].ljust(count, b"\0")
        return self.i32(*data)

    def typed_params(self, params: Iterable[Param]) -> Writer:
        """Add typed parameters; a client takes one only with the type it expects."""
        listed = list(params)
        self.u32(len(listed))
        for name, kind, value in listed:
            self.string(name).i32(kind)
            if kind is Kind.INT:
                self.i32(value)
            elif kind is Kind.UINT:
                self.u32(value)
            else:
                self.u64(value)
        return self
