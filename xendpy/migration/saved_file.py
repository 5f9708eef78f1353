"""Save files: `xm save` writes one, `xm restore` reads one, ours, any xend's or xl's.

Source: XendCheckpoint.py, Xen 3.0.3 - 4.4: the envelope, then the legacy libxc stream. Blocking;
runs in a worker thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from xendpy.errors import HypervisorError, MigrationAborted, OutOfMemory, UnsupportedStream
from xendpy.guest.domain import Domain, DomainConfig
from xendpy.hypervisor.base import Hypervisor, PageSource, RecordSource
from xendpy.hypervisor.xlsxp import parse_json
from xendpy.migration.receive import FileSource, NoGuest, drive
from xendpy.migration.save import SaveReport, save
from xendpy.migration.send import Encoder, has_pages
from xendpy.stream import libxl
from xendpy.stream.legacy_dialect import LATEST_XEND
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.libxl import LibxlEncoder, encode_xl_header, read_xl_header
from xendpy.stream.sniff import FileKind, kind_of
from xendpy.stream.steps import Steps
from xendpy.stream.xend import decode_body, encode_envelope, read_envelope

IOV_MAX = 1024  # Linux's UIO_MAXIOV
_WRITE_BACK = 256 << 20  # bytes written before they are pushed to the disk: bounds the last fsync


class Cancel:
    """A wish, from another thread, that a save or a restore ends."""

    def __init__(self) -> None:
        self._wake: Callable[[], None] | None = None
        self._by = ""

    def cancel(self, by: str) -> None:
        """Make the worker stop soon."""
        self._by = by
        if self._wake is not None:
            self._wake()

    def on_cancel(self, wake: Callable[[], None]) -> None:
        """Have `wake` called as well, so that a driver that blocks returns."""
        self._wake = wake

    def check(self) -> None:
        """Raise MigrationAborted if somebody wished so."""
        if self._by:
            raise MigrationAborted(self._by)


class FileSink:
    """Appends to an open file, without a copy; pushes what is written to the disk as it goes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unsynced = 0

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Write all of `pieces`."""
        todo = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        while todo:
            count = os.writev(self._fd, todo[:IOV_MAX])
            self._unsynced += count
            while todo and count >= todo[0].nbytes:
                count -= todo.pop(0).nbytes
            if count:
                todo[0] = todo[0][count:]
        if self._unsynced >= _WRITE_BACK:
            os.fdatasync(self._fd)
            self._unsynced = 0


def save_file(
    hypervisor: Hypervisor, domain: Domain, path: Path, *, checkpoint: bool, cancel: Cancel
) -> SaveReport:
    """Write the guest to `path`; without `checkpoint` it is gone from here afterwards.

    The file appears whole and durable, or not at all; after a failure the guest goes on as before.

    Raises:
        HypervisorError: the file cannot be written, or the driver failed.
        MigrationAborted: somebody cancelled.
    """
    with hypervisor.save(domain) as source:
        cancel.on_cancel(source.cancel)
        try:
            with new_file(path) as fd:
                sink = FileSink(fd)
                head, encoder = native_format(source)
                sink.write([head])
                report = save(source, encoder, sink, check=cancel.check)
        except BaseException:
            source.resume()
            raise
        if checkpoint:
            source.resume()
        else:
            source.relinquish()
    return report


def native_format(source: PageSource | RecordSource) -> tuple[bytes, Encoder]:
    """Return what goes before a guest's records in a file, and what writes them.

    xend's format where we write the guest ourselves; a toolstack's own where it does, so that
    it can restore the file without us, and nothing of its state is lost. xend's is one of 64-bit
    tools, whoever sent the guest: nobody says which host the file is for; `xm convert` does.
    """
    guest_type = source.config.guest_type
    if has_pages(source):
        return encode_envelope(source.config), LegacyEncoder(LATEST_XEND, guest_type)
    head = encode_xl_header(source.header())  # type: ignore[union-attr]  # TypeGuard: one way only
    return head, LibxlEncoder(guest_type, is_converted=False)


def restore_file(
    hypervisor: Hypervisor,
    path: Path,
    *,
    cancel: Cancel,
    check: Callable[[DomainConfig], None] = lambda _: None,
) -> Domain:
    """Build the guest that a save file holds, and return it paused; the file stays.

    `check` may refuse the guest, by raising, before anything is built.

    Raises:
        HypervisorError: the file cannot be read, or the driver failed.
        StreamError: it is not a save file, or a damaged one.
        DomainExists: name or uuid is taken.
    """
    with existing_file(path) as fd:
        source = FileSource(fd)
        config, image = _read_head(fd, source)
        check(config)
        # A driver that keeps a copy of what it is sent needs none of a file.
        opened = getattr(hypervisor, "restore_saved", hypervisor.restore)(config)
        with opened as session:
            cancel.on_cancel(session.cancel)
            drive(image, source, session)
            cancel.check()
            return session.complete()


def saved_config(path: Path) -> DomainConfig:
    """Return the configuration of the guest that a save file holds.

    Raises:
        HypervisorError: the file cannot be read.
        StreamError: it is not a save file, or a damaged one.
    """
    with existing_file(path) as fd:
        config, _ = _read_head(fd, FileSource(fd))
        return config


def _read_head(fd: int, source: FileSource) -> tuple[DomainConfig, Steps[None]]:
    """Return the configuration and the decoder of the image behind it: xend's, or xl's."""
    if kind_of(os.pread(fd, 64, 0)) is not FileKind.XL:
        envelope = drive(read_envelope(), source, NoGuest())
        config = DomainConfig.parse(envelope.config_bytes)
        return config, decode_body(config.guest_type)
    header = drive(read_xl_header(), source, NoGuest())
    if not (header.is_json and header.is_v2):
        raise UnsupportedStream("a save file of Xen 4.5 and before")
    config = parse_json(header.config)
    return config, libxl.decode(config.guest_type)


@contextmanager
def existing_file(path: Path) -> Iterator[int]:
    """Give a file, open for reading; what fails inside is told of the file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HypervisorError(f"Unable to read file {path}: {error.strerror}") from error
    try:
        yield fd
    except OSError as error:
        raise HypervisorError(f"Unable to read file {path}: {error.strerror}") from error
    finally:
        os.close(fd)


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """Give a file that becomes `path` when the block ends well, and vanishes when it does not.

    Memory holds secrets: only the owner reads it.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise HypervisorError(f"Unable to create file {path}: not a regular file")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.saving")
    try:
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HypervisorError(f"Unable to create file {path}: {error.strerror}") from error
    try:
        yield fd
        os.fsync(fd)
        os.rename(temporary, target)
        _sync_directory(target.parent)
    except OSError as error:
        _remove(temporary)
        raise _write_error(path, error) from error
    except BaseException:
        _remove(temporary)
        raise
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    with suppress(OSError):  # what failed first is what is told
        path.unlink(missing_ok=True)


def _write_error(path: Path, error: OSError) -> HypervisorError:
    room = os.statvfs(path.parent)
    free = room.f_bavail * room.f_frsize
    reason = f"Unable to write file {path}: {error.strerror}"
    if free > 1 << 20:
        return HypervisorError(reason)
    return OutOfMemory(reason, wanted_bytes=0, free_bytes=free)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
