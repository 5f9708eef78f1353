"""Listening sockets of the relocation port: where xend listens, and what it says if it cannot.

Sources: web/tcp.py and web/unix.py, Xen 3.0.4 - 4.4. IPv4 only, as in every xend.
"""

from __future__ import annotations

import errno
import fcntl
import re
import socket
import stat
import struct
from pathlib import Path

from xendpy.errors import RelocationError

BACKLOG = 4096  # a flood must not make the kernel drop other peers; it caps at somaxconn
SIOCGIFADDR = 0x8915  # linux/sockios.h
IFREQ_IPV4 = struct.Struct("16s2x2x4s8x")  # ifr_name, sin_family, sin_port, sin_addr
IFNAMSIZ = 16
# tcp.py >= 4.1: all parts decimal, or all parts hex; anything else may name an interface.
LOOKS_LIKE_IP = re.compile(r"\d+(\.\d+)*|[0-9a-fA-F]*(:[0-9a-fA-F]*)*")


def listen_tcp(address: str, port: int) -> socket.socket:
    """Return a listening, non-blocking socket; `address` '' = every IPv4 interface.

    Raises:
        RelocationError: the port is taken, the address unknown or not of this host.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((interface_address(address) or address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise RelocationError(_cannot(f"{address or '*'}:{port}", error)) from error
    return sock


def interface_address(name: str) -> str | None:
    """Return the IPv4 address of the interface `name`, None if it is none or has none."""
    if LOOKS_LIKE_IP.fullmatch(name) or len(name) >= IFNAMSIZ:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = IFREQ_IPV4.pack(name.encode(), b"")
        try:
            answer = fcntl.ioctl(sock.fileno(), SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(IFREQ_IPV4.unpack(answer)[1])


def listen_unix(path: Path, *, private: bool = True) -> socket.socket:
    """Return a listening, non-blocking unix socket at `path`, in a directory of mode 0700.

    A socket left behind by a dead daemon is replaced, one that answers is not. `private` false:
    the directory is shared with others, and keeps its mode.

    Raises:
        RelocationError: another daemon listens there, or the path cannot be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if private:
            path.parent.chmod(0o700)
        _clear(path)
        sock.bind(str(path))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise RelocationError(_cannot(str(path), error)) from error
    return sock


def remove_unix(path: Path) -> None:
    """Remove the socket at `path`; something else there is left alone."""
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    except FileNotFoundError:
        pass


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "something else is there", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # A full backlog says EAGAIN: somebody listens there as well.
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "address already in use", str(path))
    path.unlink()


def _cannot(place: str, error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    hint = ": is another xend running?" if error.errno == errno.EADDRINUSE else ""
    return f"cannot listen on {place}: {reason}{hint}"
