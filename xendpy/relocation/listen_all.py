"""The listeners that a configuration asks for, opened together or not at all."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

from xendpy.errors import RelocationError
from xendpy.relocation.listen import listen_tcp, listen_unix, remove_unix
from xendpy.relocation.settings import RelocationSettings

log = logging.getLogger(__name__)


class Listeners:
    """The plain port, the TLS port and the local socket; each only if it is wanted."""

    def __init__(self) -> None:
        self._plain: socket.socket | None = None
        self._tls: socket.socket | None = None
        self._local: socket.socket | None = None

    def __iter__(self) -> Iterator[socket.socket]:
        return (sock for sock in (self._plain, self._tls, self._local) if sock is not None)

    @property
    def port(self) -> int:
        """The plain TCP port that is listened on; 0 without one."""
        return _port(self._plain)

    @property
    def tls_port(self) -> int:
        """The TLS port that is listened on; 0 without one."""
        return _port(self._tls)

    def is_tls(self, sock: socket.socket) -> bool:
        """Say whether that listener is the one for TLS."""
        return sock is self._tls

    def open(self, settings: RelocationSettings) -> None:
        """Open them.

        Raises:
            RelocationError: one cannot be opened; none is then.
        """
        try:
            self._open(settings)
        except RelocationError:
            self.close()
            raise

    def _open(self, settings: RelocationSettings) -> None:
        where = settings.address or "*"
        if settings.listens:
            self._plain = listen_tcp(settings.address, settings.port)
            log.info("listening on %s:%d", where, self.port)
        if settings.tls is not None:
            self._tls = listen_tcp(settings.address, settings.tls.port)
            log.info("listening on %s:%d over TLS", where, self.tls_port)
        if settings.unix_path is not None:
            self._local = listen_unix(settings.unix_path)
            log.info("listening on %s", settings.unix_path)

    def close(self) -> None:
        """Close them all, and remove the local socket's file. May be repeated."""
        path = self._local.getsockname() if self._local is not None else None
        for sock in self:
            sock.close()
        if path is not None:
            remove_unix(Path(path))
        self._plain = self._tls = self._local = None


def places(settings: RelocationSettings) -> tuple[object, ...]:
    """Return where these settings want to listen: what takes effect at a start only."""
    tls = settings.tls.port if settings.tls else None
    return settings.listens, settings.address, settings.port, tls


def _port(sock: socket.socket | None) -> int:
    return 0 if sock is None else int(sock.getsockname()[1])
