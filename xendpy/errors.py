"""Every exception that crosses a module border.

    XendError
    ├── ConfigError               the configuration file cannot be used
    ├── SxpError                  text is not a s-expression
    ├── RelocationError           the peer, before or around the stream
    │   ├── PeerRefused           hosts-allow or a limit said no
    │   ├── HandshakeError        the peer said something else than agreed
    │   └── ChannelError          the connection failed
    │       ├── ChannelTimeout    ... by silence
    │       ├── TlsTooOld         ... because the peer knows old versions of TLS only
    │       └── ChannelAborted    ... because this side cut it
    ├── StreamError               the peer's bytes are wrong; never a bug of ours
    │   ├── StreamTruncated       the stream ended early
    │   ├── UnsupportedStream     understood, and not taken
    │   │   └── UnannouncedState  ... because its head told less
    │   ├── RecordError           one record is malformed
    │   └── RecordOrderError      a record where it must not be
    ├── DomainError               a guest by that name, or its state
    │   ├── DomainNotFound
    │   ├── DomainExists
    │   └── DomainStateError
    ├── HypervisorError           the driver could not do its work
    │   ├── HypervisorUnavailable
    │   ├── Unsupported           this driver never can
    │   ├── OutOfMemory           memory or disk room is short
    │   └── ToolstackError        a child process failed
    ├── MigrationError            a migration as a whole
    │   ├── MigrationAborted
    │   └── JournalError          a step could not be written down
    └── RpcError                  an answer for an RPC client, with its code

Data is in attributes, the sentence in `__str__`: lower case, no full stop, what was met and what
was expected.
"""

from __future__ import annotations

from collections.abc import Sequence


class XendError(Exception):
    """The root: anything that xendpy reports to an operator or a peer."""


class ConfigError(XendError):
    """The configuration file cannot be used; `line` is 1-based, or None for the whole file."""

    def __init__(
        self, reason: str, *, path: str = "", line: int | None = None, option: str = ""
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path
        self.line = line
        self.option = option

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        option = f"{self.option}: " if self.option else ""
        return f"{place}: {option}{self.reason}" if place else f"{option}{self.reason}"


class SxpError(XendError):
    """Text is not a s-expression of xend's dialect; `line` and `column` are 1-based."""

    def __init__(self, reason: str, *, line: int = 1, column: int = 1) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line
        self.column = column

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.reason}"


class RelocationError(XendError):
    """Something about the peer; `peer` is its address as text."""

    def __init__(self, reason: str, *, peer: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.peer = peer

    def __str__(self) -> str:
        return f"{self.reason} (peer {self.peer})" if self.peer else self.reason


class PeerRefused(RelocationError):
    """The peer is not let in; `rule` names what refused it."""

    def __init__(self, reason: str, *, peer: str = "", rule: str = "") -> None:
        super().__init__(reason, peer=peer)
        self.rule = rule


class HandshakeError(RelocationError):
    """The peer's control line is not what the protocol allows; `line` is what it said."""

    def __init__(self, reason: str, *, peer: str = "", line: bytes = b"") -> None:
        super().__init__(reason, peer=peer)
        self.line = line


class ChannelError(RelocationError):
    """The connection broke (reset, unreachable, TLS failure)."""


class ChannelTimeout(ChannelError):
    """The peer was silent for `after_s` seconds while we were `doing` something."""

    def __init__(self, doing: str, *, after_s: float, peer: str = "") -> None:
        super().__init__(f"timed out after {round(after_s, 2):g} s while {doing}", peer=peer)
        self.doing = doing
        self.after_s = after_s


class TlsTooOld(ChannelError):
    """The peer speaks no version of TLS that this side may speak."""


class ChannelAborted(ChannelError):
    """This side cut the connection (cancel, shutdown)."""


class StreamError(XendError):
    """The peer's bytes are wrong; `offset` counts from the first byte of the payload."""

    def __init__(self, reason: str, *, offset: int | None = None, format: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset
        self.format = format

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at {self.offset:#x}"
        prefix = f"{self.format}{place}".strip()
        return f"{prefix}: {self.reason}" if prefix else self.reason


class StreamTruncated(StreamError):
    """The stream ended after `got` of the `wanted` bytes that were due at `offset`."""

    def __init__(
        self, *, offset: int, wanted: int, got: int, format: str = "", reason: str = ""
    ) -> None:
        text = reason or f"the stream ends after {got} of {wanted} bytes"
        super().__init__(text, offset=offset, format=format)
        self.wanted = wanted
        self.got = got


class UnsupportedStream(StreamError):
    """The stream is understood and uses a `feature` that is not taken."""

    def __init__(self, feature: str, *, offset: int | None = None, format: str = "") -> None:
        super().__init__(f"{feature} is not supported", offset=offset, format=format)
        self.feature = feature


class UnannouncedState(UnsupportedStream):
    """A running guest has other xsave state than a legacy head announced; the size is right."""

    def __init__(self, xsave_bytes: int | None) -> None:
        super().__init__(
            f"{xsave_bytes or 0} bytes of xsave state a vcpu, which were not announced"
        )
        self.xsave_bytes = xsave_bytes


class RecordError(StreamError):
    """One `record` is malformed."""

    def __init__(
        self, record: str, reason: str, *, offset: int | None = None, format: str = ""
    ) -> None:
        super().__init__(reason, offset=offset, format=format)
        self.record = record

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at {self.offset:#x}"
        return f"{self.record}{place}: {self.reason}"


class RecordOrderError(RecordError):
    """A `record` came in a `state` in which only the `allowed` ones may come."""

    def __init__(
        self, record: str, *, state: str, allowed: Sequence[str], offset: int | None = None
    ) -> None:
        names = ", ".join(allowed) or "nothing"
        super().__init__(record, f"not expected after {state}; expected {names}", offset=offset)
        self.state = state
        self.allowed = tuple(allowed)


class DomainError(XendError):
    """About one guest; `domain` is its name, id or uuid as the caller gave it."""

    def __init__(self, domain: str, reason: str) -> None:
        super().__init__(reason)
        self.domain = domain
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class DomainNotFound(DomainError):
    """No guest by that name, id or uuid."""

    def __init__(self, domain: str) -> None:
        super().__init__(domain, f"Domain '{domain}' does not exist.")


class DomainExists(DomainError):
    """The name or the uuid is taken by a guest that is running, resting or incoming."""


class DomainStateError(DomainError):
    """The guest is in the state `actual`, which does not allow what was asked."""

    def __init__(self, domain: str, reason: str, *, actual: str = "") -> None:
        super().__init__(domain, reason)
        self.actual = actual


class HypervisorError(XendError):
    """The driver could not do `operation`."""

    def __init__(self, reason: str, *, operation: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.operation = operation

    def __str__(self) -> str:
        return f"{self.operation}: {self.reason}" if self.operation else self.reason


class HypervisorUnavailable(HypervisorError):
    """The driver cannot be used on this host at all."""


class Unsupported(HypervisorError):
    """This driver can never do that; the text says what could."""


class OutOfMemory(HypervisorError):
    """Memory or disk room is short: `wanted_bytes` against `free_bytes`."""

    def __init__(
        self, reason: str, *, wanted_bytes: int, free_bytes: int, operation: str = ""
    ) -> None:
        super().__init__(reason, operation=operation)
        self.wanted_bytes = wanted_bytes
        self.free_bytes = free_bytes


class ToolstackError(HypervisorError):
    """A child process failed; `stderr` holds its last lines."""

    def __init__(self, argv: Sequence[str], *, status: int | None, stderr: str) -> None:
        last = stderr.strip().splitlines()[-1:] or ["no message"]
        how = f"failed with status {status}: {last[0]}"
        if status is not None and status < 0:  # it was given no time to say why
            how = f"was killed by signal {-status}"
        super().__init__(f"{' '.join(argv)} {how}")
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr


class MigrationError(XendError):
    """A migration failed as a whole."""

    def __init__(self, reason: str, *, migration_id: str = "", state: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.migration_id = migration_id
        self.state = state

    def __str__(self) -> str:
        return self.reason


class MigrationAborted(MigrationError):
    """Somebody cancelled it; `by` says who."""

    def __init__(self, by: str, *, migration_id: str = "", state: str = "") -> None:
        super().__init__(f"cancelled by {by}", migration_id=migration_id, state=state)
        self.by = by


class JournalError(MigrationError):
    """A step could not be written down: it counts as not taken.

    `placed`: it may be found on disk all the same, by a daemon that starts next.
    """

    def __init__(self, reason: str, *, migration_id: str = "", placed: bool = False) -> None:
        super().__init__(
            f"the journal of migrations cannot be written: {reason}", migration_id=migration_id
        )
        self.placed = placed


class RpcError(XendError):
    """An answer for an RPC client: `code` in that client's own numbering."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
