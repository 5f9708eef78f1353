"""Write the records of one format as another: a guest-shaped sink that encodes what it is told.

    legacy -> v2, libxl   `to_modern`: as the stream comes, in one pass
    v2, libxl -> legacy   `to_legacy`: needs to know first what the legacy head wants; a `Survey`
                          of the same stream tells it, so that files are read twice

Memory is one batch, whatever the guest's size; the way back costs a byte a page besides. Source:
Xen's convert-legacy-stream, to whose libxc output `to_modern` is identical where both can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

from xendpy.guest.pages import PageBatch
from xendpy.guest.staging import Staging
from xendpy.stream.convert_legacy import Facts, ModernToLegacy, Survey
from xendpy.stream.convert_modern import LegacyToModern
from xendpy.stream.legacy_dialect import Dialect
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.records import Record

__all__ = ["Conversion", "Facts", "Survey", "to_legacy", "to_modern"]

Wire: TypeAlias = Iterator[bytes | memoryview]
Write: TypeAlias = Callable[[Iterable[bytes | memoryview]], None]


class Encoder(Protocol):
    """Writes one image, record by record."""

    def encode(self, record: Record) -> Wire: ...


class Conversion:
    """Give this to a decoder in the place of a guest: each record is written on at once.

    `write` gets the pieces of one record and must be done with them when it returns. Pages are
    read and written through memory that stays in the cache: between files a copy more, and yet
    faster than to map them, each of whose pages costs a walk through the tables.
    """

    def __init__(
        self,
        translate: Callable[[Record], Iterator[Record]],
        encoder: Encoder,
        write: Write,
    ) -> None:
        self._translate = translate
        self._encoder = encoder
        self._write = write
        self._staging = Staging()

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        """Return memory for `batch`, valid until the next call."""
        return self._staging.view(batch)

    def apply(self, record: Record) -> None:
        """Write `record` on.

        Raises:
            UnsupportedStream: the other format cannot carry it.
        """
        for translated in self._translate(record):
            self._write(self._encoder.encode(translated))


def to_modern(encoder: Encoder, write: Write, *, keeps_unmapped: bool = False) -> Conversion:
    """Convert a legacy stream with a `LibxlEncoder` or `LibxcEncoder`.

    The legacy list of unmapped pfns is dropped, as Xen's converter does: restorers of v2 do not
    take frames back. `keeps_unmapped` writes it as XTAB pages, for readers that do.
    """
    translate = LegacyToModern(keeps_unmapped=keeps_unmapped).translate
    return Conversion(translate, encoder, write)


def to_legacy(
    facts: Facts,
    dialect: Dialect,
    write: Write,
    *,
    tool_width: int = 8,
    lossy: bool = False,
) -> tuple[Conversion, list[str]]:
    """Convert a v2 or libxl stream; the list fills with a note for each thing left out.

    `tool_width`: of the receiver's tools, 4 or 8 bytes. CPUID and MSR policies are left out
    always, vcpus' MSRs only if `lossy`.
    """
    translator = ModernToLegacy(facts, dialect, lossy=lossy)
    encoder = LegacyEncoder(dialect, facts.guest_type, tool_width)
    return Conversion(translator.translate, encoder, write), translator.notes
