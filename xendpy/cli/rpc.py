"""The XML-RPC client of xm: over xend's unix socket, or over HTTP.

Spec: xen/util/xmlrpcclient.py and xen/xend/XendClient.py of xend 4.4 for the addresses, the fault
codes and the way a top-level string is escaped. The standard library only, imported late.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from xendpy.errors import RpcError

if TYPE_CHECKING:
    import http.client
    import socket
    import xmlrpc.client

    from xendpy.paths import Paths

ERROR_INTERNAL: Final = 1
ERROR_GENERIC: Final = 2
ERROR_INVALID_DOMAIN: Final = 3


class Unreachable(RpcError):
    """Nobody answers at `uri`; `reason` is the system's word for it."""

    def __init__(self, reason: str, *, uri: str) -> None:
        super().__init__(0, reason)
        self.uri = uri


class Silent(Unreachable):
    """Somebody listens at `uri` and has said nothing in time."""


class BrokenAnswer(RpcError):
    """Something answered that is not XML-RPC; `code` is the HTTP status, or -1 for none."""


def server_uri(paths: Paths, *, root_given: bool, environ: Mapping[str, str] = os.environ) -> str:
    """Return where the daemon is: `--root`, then `XM_SERVER`, then xm-config.xml, then xend's."""
    default = f"httpu://{paths.xmlrpc_socket}"
    if root_given:
        return default
    chosen = environ.get("XM_SERVER") or _configured_uri(paths, environ)
    return chosen or default


def _configured_uri(paths: Paths, environ: Mapping[str, str]) -> str:
    """Return the address in xm's own configuration file, if it has one for this protocol."""
    path = environ.get("XM_CONFIG_FILE") or str(paths.config_dir / "xm-config.xml")
    if not os.path.isfile(path):
        return ""
    import sys
    from xml.etree import ElementTree

    try:
        server = ElementTree.parse(path).getroot().find(".//server")
    except (ElementTree.ParseError, OSError):
        print(f"Ignoring invalid configuration file {path}.", file=sys.stderr)
        return ""
    if server is None:
        return ""
    kind = server.get("type", "")
    if kind == "LegacyXMLRPC":
        return server.get("uri", "")
    # A Xen-API address would not answer xend's calls: its own default is used instead.
    print(f"Invalid server type {kind}; using LegacyXMLRPC.", file=sys.stderr)
    return ""


class Server:
    """One daemon; connects at the first call and keeps the connection.

    `timeout_s` is how long a daemon at a unix socket may be silent; None: as long as it takes.
    """

    def __init__(self, uri: str, *, timeout_s: float | None = None) -> None:
        self.uri = uri
        self._timeout_s = timeout_s
        self._proxy: xmlrpc.client.ServerProxy | None = None

    def call(self, method: str, *args: Any) -> Any:
        """Return the daemon's answer: nested lists, dicts, str, int, float, bool, None.

        Nothing is ever sent twice: a migration asked for again would be another one. Only where
        the daemon has hung up on a connection that lay idle, a new one is made first.

        Raises:
            RpcError: the daemon answered with a fault; `code` is xend's.
            Silent: it has not answered within `timeout_s`, and may do what was asked.
            Unreachable: nobody listens there, or the connection broke.
            BrokenAnswer: the answer is not one.
        """
        import http.client
        import xml.parsers.expat
        import xmlrpc.client

        if self._proxy is None:
            self._proxy = self._connect()
        try:
            answer = getattr(self._proxy, method)(*args)
        except xmlrpc.client.Fault as fault:
            raise RpcError(fault.faultCode, str(fault.faultString)) from fault
        except xmlrpc.client.ProtocolError as error:
            raise BrokenAnswer(error.errcode, error.errmsg) from error
        except (http.client.BadStatusLine, xml.parsers.expat.ExpatError) as error:
            raise BrokenAnswer(-1, str(error)) from error
        except (xmlrpc.client.ResponseError, http.client.HTTPException) as error:
            raise BrokenAnswer(-1, str(error)) from error
        except (TimeoutError, BlockingIOError) as error:
            # At a unix socket whose queue is full of others who wait, a connect with a time limit
            # fails at once, by EAGAIN.
            reason = f"no answer within {self._timeout_s} s"
            raise Silent(reason, uri=self.uri) from error
        except OSError as error:
            raise Unreachable(error.strerror or str(error), uri=self.uri) from error
        return unescape(answer) if isinstance(answer, str) else answer

    def _connect(self) -> xmlrpc.client.ServerProxy:
        import xmlrpc.client

        scheme, sign, rest = self.uri.partition("://")
        if not sign or scheme not in ("httpu", "http", "https"):
            raise Unreachable(f"unsupported protocol in '{self.uri}'", uri=self.uri)
        return xmlrpc.client.ServerProxy(
            "http://localhost/RPC2" if scheme == "httpu" else self.uri,
            transport=_transport(scheme, rest, self._timeout_s),
            allow_none=True,
        )


def _transport(scheme: str, path: str, timeout_s: float | None) -> xmlrpc.client.Transport:
    """Return a transport that never repeats a request, to a unix socket at `path` or over HTTP.

    The library's own sends it again when a kept connection breaks, however far it has come.
    """
    import http.client
    import socket
    import xmlrpc.client

    def once(
        self: xmlrpc.client.Transport,
        host: Any,
        handler: str,
        request_body: Any,
        verbose: bool = False,
    ) -> Any:
        kept = self._connection[1]
        if kept is not None and _has_ended(kept.sock):
            self.close()
        with _broken_pipe_as_error():
            return self.single_request(host, handler, request_body, verbose)

    class UnixConnection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(timeout_s)
            try:
                self.sock.connect(path)
            except OSError:
                self.close()
                raise

    class UnixTransport(xmlrpc.client.Transport):
        request = once

        def make_connection(self, host: Any) -> http.client.HTTPConnection:
            if not (self._connection and self._connection[1]):
                self._connection = host, UnixConnection("localhost")
            connection = self._connection[1]
            assert connection is not None
            return connection

    class HttpTransport(xmlrpc.client.Transport):
        request = once

    class HttpsTransport(xmlrpc.client.SafeTransport):
        request = once

    match scheme:
        case "httpu":
            return UnixTransport()
        case "https":
            return HttpsTransport()
        case _:
            return HttpTransport()


def _has_ended(sock: socket.socket | None) -> bool:
    """Say whether the daemon has hung up between two calls: it says nothing by itself."""
    import select

    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def _broken_pipe_as_error() -> Iterator[None]:
    """Have a write to a daemon that has gone fail, in this thread, and not kill the command.

    The signal is held back and taken away, not ignored: a closed standard output still ends the
    command as it ends any other. MSG_NOSIGNAL would not do: TLS writes by itself.
    """
    import signal

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        signal.sigtimedwait({signal.SIGPIPE}, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(.))", re.DOTALL)
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def unescape(text: str) -> str:
    r"""Return a top-level string as it was before xend escaped it.

    xend sends such a string as the inside of a Python 2 literal: `\n`, `\\`, and `\xNN` for every
    byte beyond ASCII. What the bytes say in UTF-8 is what was meant.
    """

    def plain(match: re.Match[str]) -> str:
        hexadecimal, octal, other = match.groups()
        if hexadecimal:
            return chr(int(hexadecimal, 16))
        if octal:
            return chr(int(octal, 8))
        return _LETTERS.get(other, other)

    escaped = _ESCAPE.sub(plain, text)
    try:
        return escaped.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:  # not from a Python 2: it came as Unicode
        return escaped
