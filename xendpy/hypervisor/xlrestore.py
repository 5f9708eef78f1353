"""A guest on its way in through `xl restore`: records become a libxl stream in xl's pipe.

A stream of another host's libxl goes on as it is, a legacy one is translated. Where the sender is
an old xend, a save file is written beside (xlspool): once the sender may have let go of its
guest, a failing xl does not end the reception, and the file is what is kept. Nor does a failing
disk then: xl goes on, and has the guest.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from xendpy.errors import HypervisorError, UnsupportedStream, XendError
from xendpy.guest.domain import Domain, GuestType
from xendpy.guest.pages import PageBatch
from xendpy.hypervisor.pipes import PipeWriter, pipe
from xendpy.hypervisor.xlspool import ARRIVING, Spool
from xendpy.hypervisor.xltool import Child, Tool
from xendpy.stream import legacy_head
from xendpy.stream.convert import Conversion, to_modern
from xendpy.stream.libxl import LibxlEncoder, XlHeader, encode_xl_header
from xendpy.stream.records import Ending, PvInfo, Record, StreamStart

log = logging.getLogger(__name__)

BUILD_S = 300.0  # xl waits for devices, each up to 40 s, and hotplug scripts
CLEAN_S = 60.0
REST = ".rest"
CANCELLED = "the guest's arrival was cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """What one restore needs: libxl's JSON, and what is done with a guest that came to be.

    `finish(path)` returns the guest once xl has built it, `path` being the save file or None;
    `clean` removes what a failed xl left.
    """

    tool: Tool
    guest_type: GuestType
    json: bytes
    pv32: bool
    finish: Callable[[str], Domain]
    clean: Callable[[], None]


class XlRestore:
    """A RestoreSession; `close` ends it whichever way it went."""

    def __init__(self, building: Building, spool: Spool | None) -> None:
        self._building = building
        self._spool = spool
        self._torn = False  # the save file lacks something that xl has
        self._cancelled = False
        self._ending = False
        self._failure: HypervisorError | None = None
        self._completed = False
        self._conversion: Conversion | None = None
        self._rest: Path | None = None
        reader, writer = pipe()
        self._pipe = PipeWriter(writer, check=self._check)
        try:
            self._child: Child = building.tool.start(["restore", "-p", "/dev/stdin"], stdin=reader)
        except BaseException:
            self._pipe.close()
            raise
        finally:
            os.close(reader)
        self._write([encode_xl_header(XlHeader(building.json, is_json=True, is_v2=True))])

    def populate(self, batch: PageBatch) -> Sequence[memoryview]:
        """Return staging memory; see hypervisor.base."""
        self._check()
        assert self._conversion is not None, "a stream begins with StreamStart"
        return self._conversion.populate(batch)

    def apply(self, record: Record) -> None:
        """Write one record on to xl, and to the save file.

        Raises:
            ToolstackError: xl has ended, and the sender still has its guest.
        """
        self._check()
        match record:
            case StreamStart():
                self._conversion = self._converter(record)
            case PvInfo(guest_width=4) if not self._building.pv32:
                raise HypervisorError(
                    "a 32-bit PV guest: this hypervisor runs none (xen_caps of `xl info` has no"
                    " xen-3.0-x86_32p)",
                    operation="restore",
                )
            case Ending():
                self._ending = True
        if self._spool is not None and not self._torn:
            self._keep_safe(self._spool, record)
        if self._failure is None:
            assert self._conversion is not None
            self._conversion.apply(record)

    def _keep_safe(self, spool: Spool, record: Record) -> None:
        try:
            spool.apply(record)
        except OSError as error:
            if not self._ending or self._failure is not None:
                raise
            self._torn = True
            log.error("%s is not complete: %s; xl has all of the guest", spool.path, error)

    def _converter(self, start: StreamStart) -> Conversion:
        legacy = start.format == legacy_head.FORMAT
        if not legacy and self._spool is not None:  # which is of xend's format
            raise UnsupportedStream(f"a {start.format} image, sent as xend sends one,")
        encoder = LibxlEncoder(self._building.guest_type, is_converted=legacy)
        if legacy:
            return to_modern(encoder, self._write)
        return Conversion(lambda record: iter((record,)), encoder, self._write)

    def _write(self, pieces: Iterable[bytes | memoryview]) -> None:
        try:
            self._pipe.write(pieces)
        except (BrokenPipeError, HypervisorError) as error:
            failure = self._why(error)
            if not (self._ending and self._spool is not None) or self._cancelled:
                raise failure from error
            self._failure = failure

    def _why(self, error: Exception) -> HypervisorError:
        """Return what xl says of its early end; it is over when this returns."""
        if self._cancelled:
            return HypervisorError(CANCELLED, operation="restore")
        self._pipe.close()
        try:
            self._child.wait(BUILD_S)
        except HypervisorError as told:
            return told
        return HypervisorError(f"xl restore ended early: {error}", operation="restore")

    def complete(self) -> Domain:
        """Wait until xl has built the guest, and return it paused.

        Raises:
            ToolstackError: it could not; the text says what is kept, if anything is.
        """
        self._check()
        self._pipe.close()
        kept = self._seal()
        try:
            if self._failure is not None:
                raise self._failure
            self._child.wait(BUILD_S)
            domain = self._building.finish(kept)
        except HypervisorError as error:
            if not kept:
                raise
            reason = f"{error.reason}; the guest is kept, restore it with: xm restore {kept}"
            raise HypervisorError(reason) from error
        self._completed = True
        return domain

    def _seal(self) -> str:
        """Make the save file durable, if that can be; return its name, else nothing."""
        if self._spool is None or self._torn:
            return ""
        try:
            return str(self._spool.seal())
        except OSError as error:
            log.error("%s is not safe on disk: %s", self._spool.path, error)
            return ""

    def keep(self, reason: str) -> str:
        """Keep the save file, whole or not, and say what can be done with it."""
        spool, self._spool = self._spool, None
        if spool is None:
            return "nothing is kept: the sender still has the guest"
        doubt = ""
        try:
            if not _sealed(spool):
                _ = spool.seal() if spool.whole else spool.keep_partial()
            self._keep_rest(spool.path)
        except OSError as error:
            doubt = f", not safe on disk: {error}"
        finally:
            spool.close()
        if spool.whole:
            return f"{spool.path} (restore it with: xm restore {spool.path}){doubt}"
        return f"{spool.path}, in part (look at it with: xm inspect {spool.path}){doubt}"

    def _keep_rest(self, path: Path) -> None:
        if self._rest is None:
            return
        if self._rest.stat().st_size:
            os.rename(self._rest, f"{path}{REST}")
        else:
            self._rest.unlink()

    def rest(self) -> BinaryIO:
        """Return a file for what follows a stream that could not be decoded to its end."""
        assert self._spool is not None, "only what an old xend sends is kept"
        self._rest = Path(f"{self._spool.path}{REST}")
        return open(self._rest, "wb")

    def cancel(self) -> None:
        """Make a call that blocks fail soon. Any thread."""
        self._cancelled = True
        self._child.kill()

    def close(self) -> None:
        """End xl if the guest was not completed, and leave nothing of it; once."""
        self._pipe.close()
        spool, self._spool = self._spool, None
        try:
            if not self._completed:
                self._end_child()
                self._clean()
        finally:
            if spool is not None:
                _leave(spool, needed=self._completed and _sealed(spool))

    def _clean(self) -> None:
        try:
            self._building.clean()
        except HypervisorError as error:  # why the guest did not come is what must be told
            log.error("what xl has left of the guest, if anything, is not removed: %s", error)

    def _end_child(self) -> None:
        # At the end of its pipe xl gives up by itself, and removes what it had built.
        try:
            self._child.wait(CLEAN_S)
        except XendError:
            return

    def _check(self) -> None:
        if self._cancelled:
            raise HypervisorError(CANCELLED, operation="restore")


def _sealed(spool: Spool) -> bool:
    return spool.path.suffix != ARRIVING


def _leave(spool: Spool, *, needed: bool) -> None:
    try:
        if not needed:
            spool.discard()
    except OSError as error:
        log.error("%s is not removed: %s", spool.path, error)
    finally:
        spool.close()
