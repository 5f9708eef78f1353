"""A guest on its way out through `xl save`: a libxl stream on a pipe, as records.

xl suspends the guest, writes it, and leaves it paused here (`-p`); nothing is lost until
`relinquish`. Should the pipe break, xl lets the guest go on by itself, which is why xl is never
killed in the middle: the pipe is closed instead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from xendpy.errors import HypervisorError, StreamTruncated
from xendpy.guest.domain import DomainConfig, GuestType
from xendpy.hypervisor.pipes import PipeReader, pipe, pull
from xendpy.hypervisor.xltool import Child, Tool
from xendpy.stream import libxl
from xendpy.stream.libxl import XlHeader
from xendpy.stream.records import End, Record
from xendpy.stream.steps import Steps

GIVE_UP_S = 120.0  # xl waits a minute for a guest that does not answer its suspend request
IN_DOUBT = "the connection was lost after the guest's last byte"


class XlSource:
    """A RecordSource; `ended` is called once, with how the session ended.

    `ended("relinquish" | "resume" | "hold", reason)` does to the guest what that means.
    """

    live = False  # the guest stands still while it is read
    at_rest = False

    def __init__(
        self,
        tool: Tool,
        domid: int,
        config: DomainConfig,
        scratch: Path,
        ended: Callable[[str, str], None],
    ) -> None:
        self.config = config
        self.scratch = scratch
        self._tool = tool
        self._domid = domid
        self._ended = ended
        self._chosen = False
        self._in_doubt = False
        self._cancelled = False
        self._child: Child | None = None
        self._pipe: PipeReader | None = None
        self._header: XlHeader | None = None

    @property
    def guest_type(self) -> GuestType:
        return self.config.guest_type

    def header(self) -> XlHeader:
        """Return the save-file header that belongs before the records; starts xl."""
        if self._header is None:
            self._start()
            self._header = self._read_header()
        return self._header

    def records(self) -> Iterator[Record]:
        """Suspend the guest and yield its records; see hypervisor.base. Once.

        Raises:
            ToolstackError: xl failed, and has let the guest go on.
        """
        self.header()
        assert self._pipe is not None
        assert self._child is not None
        try:
            for record in pull(libxl.decode(self.guest_type), self._pipe):
                if isinstance(record, End):
                    self._whole()
                yield record
        except StreamTruncated as error:
            raise self._why(error) from error

    def _whole(self) -> None:
        """Believe the last record only if xl says so too; then the guest is paused here."""
        assert self._child is not None
        self._child.wait(GIVE_UP_S)
        self._in_doubt = True

    def release(self) -> None:
        """Do nothing: after its last record the guest stands still here; see hypervisor.base."""

    def _start(self) -> None:
        reader, writer = pipe()
        self._pipe = PipeReader(reader, check=self._check)
        try:
            self._child = self._tool.start(
                ["save", "-p", str(self._domid), f"/dev/fd/{writer}"], pass_fds=(writer,)
            )
        except BaseException:
            self._pipe.close()
            raise
        finally:
            os.close(writer)

    def _read_header(self) -> XlHeader:
        found: list[XlHeader] = []

        def steps() -> Steps[None]:
            found.append((yield from libxl.read_xl_header()))

        assert self._pipe is not None
        try:
            for _ in pull(steps(), self._pipe):
                raise AssertionError("a header has no records")
        except StreamTruncated as error:
            raise self._why(error) from error
        return found[0]

    def _why(self, error: Exception) -> HypervisorError:
        """Return what xl says of its early end; it is over when this returns."""
        assert self._child is not None
        try:
            self._child.wait(GIVE_UP_S)
        except HypervisorError as told:
            return told
        return HypervisorError(f"xl ended early: {error}", operation="save")

    def relinquish(self) -> None:
        """Destroy the local copy."""
        self._end("relinquish", "")

    def resume(self) -> None:
        """Let the guest go on here, as it was before."""
        self._end("resume", "")

    def hold(self, reason: str) -> None:
        """Leave the guest paused, durably noted as in doubt."""
        self._end("hold", reason)

    def cancel(self) -> None:
        """Make a call that blocks fail soon. Any thread."""
        self._cancelled = True

    def close(self) -> None:
        """End the session: without a choice, as the end of the stream was said or not."""
        if not self._chosen:
            self._end(*(("hold", IN_DOUBT) if self._in_doubt else ("resume", "")))

    def _end(self, how: str, reason: str) -> None:
        if self._chosen:
            raise ValueError("the session was ended before")
        self._chosen = True
        if self._child is not None:
            self._part(how)
            # Of a broken pipe xl resumes the guest; that it failed is what was wanted.
            with contextlib.suppress(HypervisorError):
                self._child.wait(GIVE_UP_S)
        self._ended(how, reason)

    def _part(self, how: str) -> None:
        """Leave xl to itself: it ends soon."""
        assert self._pipe is not None
        self._pipe.close()

    def _check(self) -> None:
        if self._cancelled:
            raise HypervisorError("the guest's departure was cancelled", operation="save")
