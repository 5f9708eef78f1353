"""A running guest on its way out through `xl migrate`: this daemon is xl's transport.

xl copies the guest while it runs, and asks on the same two pipes whether its receiver has it. The
receiver's half is played here, for whoever really takes the guest:

    <-  banner
    ->  the save-file header and the libxl stream
    <-  READY   the target holds the guest whole; `release` says so
    ->  GO      xl has renamed its copy to NAME--migratedaway, and never runs it by itself again
    <-  REPORT and a byte: 0 = xl destroys its copy; else GO comes back, and xl resumes it

Cut before GO, xl resumes the guest; cut after it, xl leaves it suspended under that name. Source:
tools/xl/xl_migrate.c, xl.h of Xen 4.17.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from xendpy.errors import HypervisorError, StreamTruncated, ToolstackError
from xendpy.hypervisor.pipes import PipeReader, PipeWriter, enlarge, pipe
from xendpy.hypervisor.xlsave import XlSource
from xendpy.hypervisor.xltool import Child

BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GO = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"
STARTED, NOT_STARTED = b"\0", b"\1"

# What xl gives to a shell as its way to the other host. The shell only says who it is, and waits
# until the pipes that xl gave it have been opened a second time: then nobody stands in between.
# They are 3 and 4, for a shell moves 0 and 1 about. By path, for Debian's sh knows no descriptors
# above 9, where those of this daemon are.
TRANSPORT = "exec 3<&0 4>&1; echo $$ >/dev/fd/{said}; read opened </dev/fd/{told}"
FIRST_FREE = 10
MEET_S = 60.0


class XlLiveSource(XlSource):
    """A RecordSource of a guest that runs until nearly all of it has gone; else as XlSource."""

    live = True
    _say: PipeWriter

    def _start(self) -> None:
        listener, said = _high(pipe())
        told, teller = _high(pipe())
        try:
            rune = TRANSPORT.format(said=said, told=told)
            child = self._tool.start(
                ["migrate", "-s", "", str(self._domid), rune], pass_fds=(said, told)
            )
        except BaseException:
            os.close(listener)
            os.close(teller)
            raise
        finally:
            os.close(said)
            os.close(told)
        reader, writer = _meet(child, listener, teller)
        self._child = child
        self._pipe = PipeReader(reader, check=self._check)
        self._say = PipeWriter(writer, check=self._check)
        self._tell(BANNER)

    def _whole(self) -> None:
        """Do nothing: xl waits for a word from the target."""

    def release(self) -> None:
        """Have xl give its copy up; see hypervisor.base.

        Raises:
            HypervisorError: it did not, and the guest goes on here.
        """
        assert self._pipe is not None
        self._tell(READY)
        try:
            answer = self._pipe.recv_exactly(len(GO))
        except StreamTruncated as error:
            raise self._why(error) from error
        if answer != GO:
            raise HypervisorError(f"xl answered {answer!r} to its receiver", operation="migrate")
        self._in_doubt = True

    def _why(self, error: Exception) -> HypervisorError:
        told = super()._why(error)
        if not isinstance(told, ToolstackError):
            return told
        argv = ("xl", "migrate", str(self._domid))  # the transport is nobody's business
        return ToolstackError(argv, status=told.status, stderr=told.stderr)

    def _tell(self, message: bytes) -> None:
        try:
            self._say.write([message])
        except BrokenPipeError as error:
            raise self._why(error) from error

    def _part(self, how: str) -> None:
        """Tell xl the end, where it has asked for one, and leave it."""
        assert self._pipe is not None
        if self._in_doubt and how != "hold":
            verdict = STARTED if how == "relinquish" else NOT_STARTED + GO
            # If xl is gone, the caller does to the guest what it would have done.
            with contextlib.suppress(BrokenPipeError, HypervisorError):
                self._say.write([REPORT + verdict])
        self._say.close()
        super()._part(how)


def _meet(child: Child, listener: int, teller: int) -> tuple[int, int]:
    """Return what the transport was given: what comes from xl, and what goes to it.

    Closes both descriptors: then the transport ends.

    Raises:
        HypervisorError: xl, or its transport, ended first.
    """
    lines = PipeReader(listener, stall_s=MEET_S)
    opened: list[int] = []
    try:
        place = f"/proc/{_number(lines)}/fd"
        opened.append(os.open(f"{place}/3", os.O_RDONLY | os.O_CLOEXEC))
        opened.append(os.open(f"{place}/4", os.O_WRONLY | os.O_CLOEXEC))
    except (OSError, HypervisorError, StreamTruncated) as error:
        for fd in opened:
            os.close(fd)
        os.close(teller)
        teller = -1
        child.wait(MEET_S)  # without its transport xl ends, and what it says is the better text
        raise HypervisorError(f"the transport of xl: {error}", operation="migrate") from error
    finally:
        lines.close()
        if teller >= 0:
            os.close(teller)
    enlarge(opened[0])
    return opened[0], opened[1]


def _high(ends: tuple[int, int]) -> tuple[int, int]:
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE) for fd in ends]
    for fd in ends:
        os.close(fd)
    return moved[0], moved[1]


def _number(lines: PipeReader) -> int:
    digits = b""
    while not digits.endswith(b"\n"):
        digits += lines.recv_exactly(1)
    return int(digits)
