"""Channel over real socket pairs and loopback TCP."""

from __future__ import annotations

import fcntl
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from xendpy.errors import (
    ChannelAborted,
    ChannelError,
    ChannelTimeout,
    HandshakeError,
    StreamError,
    StreamTruncated,
)
from xendpy.relocation.channel import Channel, EofKind, unacknowledged

Pair = tuple[Channel, socket.socket]


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    ours, theirs = _sockets(request.param)
    theirs.settimeout(40)
    with theirs, Channel(ours, peer="192.0.2.1:700", stall_timeout_s=10) as channel:
        yield channel, theirs


def _sockets(kind: str) -> tuple[socket.socket, socket.socket]:
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return ours, theirs


@pytest.fixture
def beside() -> Iterator[Callable[..., None]]:
    with ThreadPoolExecutor(1) as pool:
        futures = []
        yield lambda call, *args: futures.append(pool.submit(call, *args))
        for future in futures:
            future.result(10)


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_prefix_is_read_first_and_counted() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Channel(ours, prefix=b"abcde") as channel:
        theirs.sendall(b"fgh")
        assert channel.recv_exactly(2) == b"ab"
        assert channel.offset == 2
        assert channel.recv_exactly(6) == b"cdefgh"
        assert channel.offset == 8


def test_readable_tells_bytes_and_the_end_and_silence(pair: Pair) -> None:
    channel, theirs = pair
    assert not channel.readable()
    theirs.sendall(b"a")
    wait_for_bytes(channel)
    assert channel.recv_exactly(1) == b"a"
    assert not channel.readable()
    theirs.close()
    wait_for_bytes(channel)


def wait_for_bytes(channel: Channel) -> None:
    end_s = time.monotonic() + 10
    while not channel.readable():
        assert time.monotonic() < end_s


def test_readable_of_a_descriptor_beyond_what_select_can_name() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    try:
        low, theirs = socket.socketpair()
        with low, theirs:
            high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1024)
            with Channel(socket.socket(fileno=high)) as channel:
                assert not channel.readable()
                theirs.sendall(b"a")
                assert channel.readable()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_scattered_views_are_filled_in_order_beyond_one_call(
    pair: Pair, beside: Callable[..., None]
) -> None:
    channel, theirs = pair
    data = bytes(range(256)) * 40 * 16
    memory = bytearray(len(data) * 2)
    # 2560 views of 64 bytes with gaps between: more than one recvmsg takes.
    views = [memoryview(memory)[at : at + 64] for at in range(0, len(memory), 128)]
    beside(theirs.sendall, data)
    channel.recv_into(views)
    assert b"".join(views) == data
    assert not any(memory[64::128])


def test_bytes_in_drops_fill_views_across_their_borders(pair: Pair) -> None:
    channel, theirs = pair
    memory = bytearray(10)
    views = [memoryview(memory)[0:3], memoryview(memory)[3:3], memoryview(memory)[3:10]]
    done = threading.Thread(target=channel.recv_into, args=[views])
    done.start()
    for byte in b"0123456789":
        theirs.sendall(bytes([byte]))
    done.join(40)
    assert memory == b"0123456789"


def test_end_inside_views_says_where(pair: Pair) -> None:
    channel, theirs = pair
    theirs.sendall(b"0123456789")
    theirs.shutdown(socket.SHUT_WR)
    channel.recv_exactly(4)
    with pytest.raises(StreamTruncated) as caught:
        channel.recv_exactly(100)
    assert (caught.value.offset, caught.value.wanted, caught.value.got) == (4, 100, 6)


def test_reset_is_no_end() -> None:
    ours, theirs = _sockets("tcp")
    with Channel(ours) as channel:
        theirs.sendall(b"0123")
        assert channel.recv_exactly(4) == b"0123"
        _reset(theirs)
        with pytest.raises(ChannelError, match="connection reset by peer while receiving"):
            channel.recv_exactly(1)


def test_reset_within_the_rest_is_no_end() -> None:
    ours, theirs = _sockets("tcp")
    with Channel(ours) as channel:
        theirs.sendall(b"0123")
        channel.recv_exactly(4)
        _reset(theirs)
        with pytest.raises(ChannelError):
            channel.recv_rest(100)


def test_silence_is_a_timeout(pair: Pair) -> None:
    channel, theirs = pair
    theirs.sendall(b"01")
    with channel.deadline(0.05), pytest.raises(ChannelTimeout) as caught:
        channel.recv_exactly(3)
    assert caught.value.after_s == 0.05
    assert "receiving" in str(caught.value)


def test_progress_moves_the_deadline(pair: Pair) -> None:
    channel, theirs = pair
    result: list[bytes] = []
    with channel.deadline(0.5):
        reader = threading.Thread(target=lambda: result.append(channel.recv_exactly(8)))
        reader.start()
        for byte in b"01234567":  # 0.8 s in all, more than the deadline of one silence
            assert not threading.Event().wait(0.1)
            theirs.sendall(bytes([byte]))
        reader.join(40)
    assert result == [b"01234567"]


def test_rest_is_everything_up_to_the_end(pair: Pair) -> None:
    channel, theirs = pair
    theirs.sendall(b"0123456789")
    theirs.close()
    channel.recv_exactly(1)
    assert channel.recv_rest(9) == b"123456789"
    assert channel.recv_rest(9) == b""


def test_rest_has_a_limit(pair: Pair) -> None:
    channel, theirs = pair
    theirs.sendall(b"0123456789")
    theirs.close()
    with pytest.raises(StreamError, match="more than 9 bytes"):
        channel.recv_rest(9)


def test_line_leaves_what_follows(pair: Pair) -> None:
    channel, theirs = pair
    theirs.sendall(b"(ready receive)\n\0\1")
    assert channel.recv_line(80) == b"(ready receive)\n"
    assert channel.recv_exactly(2) == b"\0\1"


def test_line_cut_by_the_end_has_no_newline(pair: Pair) -> None:
    channel, theirs = pair
    theirs.sendall(b"(err")
    theirs.close()
    assert channel.recv_line(80) == b"(err"
    assert channel.recv_line(80) == b""


def test_endless_line_is_refused(pair: Pair) -> None:
    channel, theirs = pair
    theirs.sendall(b"x" * 20)
    with pytest.raises(HandshakeError) as caught:
        channel.recv_line(10)
    assert caught.value.line == b"x" * 11


def test_gathered_pieces_arrive_through_a_full_buffer(pair: Pair) -> None:
    channel, theirs = pair
    pieces = [bytes([at % 251]) * (1000 + at) for at in range(3000)]
    wanted = b"".join(pieces)
    got = bytearray()

    def read() -> None:
        while data := theirs.recv(1 << 16):
            got.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    channel.send(pieces)
    channel.half_close()
    reader.join(40)
    assert got == wanted


def test_half_close_still_receives(pair: Pair) -> None:
    channel, theirs = pair
    channel.half_close()
    assert theirs.recv(1) == b""
    theirs.sendall(b"(ok)\n")
    assert channel.recv_line(80) == b"(ok)\n"


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda sock: sock.shutdown(socket.SHUT_RDWR), EofKind.EOF),
        (lambda sock: sock.sendall(b"x"), EofKind.DATA),
        (lambda sock: None, EofKind.TIMEOUT),
        (_reset, EofKind.RESET),
    ],
    ids=["eof", "data", "timeout", "reset"],
)
def test_wait_eof_tells_what_came(act: Callable[[socket.socket], None], kind: EofKind) -> None:
    ours, theirs = _sockets("tcp")
    with theirs, Channel(ours) as channel:
        act(theirs)
        assert channel.wait_eof(0.2) is kind


def test_end_seen_once_stays_an_end() -> None:
    ours, theirs = _sockets("tcp")
    with Channel(ours) as channel:
        theirs.close()
        assert channel.recv_rest(10) == b""
        assert channel.wait_eof(0.0) is EofKind.EOF


def test_reset_after_the_end_is_still_the_end() -> None:
    # Every xend shuts both directions down and closes; our (ok) then draws a reset.
    ours, theirs = _sockets("tcp")
    with Channel(ours) as channel:
        theirs.shutdown(socket.SHUT_RDWR)
        theirs.close()
        channel.send([b"(ok)\n"])
        assert channel.wait_eof(5) is EofKind.EOF


def test_acknowledged_when_the_peer_has_it() -> None:
    ours, theirs = _sockets("tcp")
    with theirs, Channel(ours) as channel:
        channel.send([b"(err (type x) (value 'no room'))\n"])
        assert channel.wait_acknowledged(5)
        assert unacknowledged(ours) == 0


def test_not_acknowledged_while_nobody_reads() -> None:
    ours, theirs = _sockets("unix")  # a unix socket counts what has not been read
    with theirs, Channel(ours) as channel:
        channel.send([b"(ok)\n"])
        assert not channel.wait_acknowledged(0.02)
        assert theirs.recv(10) == b"(ok)\n"
        assert channel.wait_acknowledged(5)


def test_broken_connection_is_not_waited_for() -> None:
    ours, theirs = _sockets("tcp")
    with Channel(ours) as channel:
        theirs.shutdown(socket.SHUT_RDWR)
        theirs.close()
        with pytest.raises(ChannelError):  # not after 60 s: the test's own limit
            channel.send([b"(err"])
            channel.wait_acknowledged(100)


def test_abort_wakes_a_blocked_receive(pair: Pair) -> None:
    channel, _ = pair
    errors: list[BaseException] = []

    def read() -> None:
        try:
            channel.recv_exactly(1)
        except ChannelError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    channel.abort()
    reader.join(40)
    assert not reader.is_alive()
    assert type(errors[0]) is ChannelAborted


def test_abort_wakes_a_blocked_send(pair: Pair) -> None:
    channel, _ = pair
    errors: list[BaseException] = []

    def write() -> None:
        try:
            while True:
                channel.send([bytes(1 << 20)])
        except ChannelError as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    channel.abort()
    writer.join(40)
    assert type(errors[0]) is ChannelAborted


def test_everything_after_abort_says_so(pair: Pair) -> None:
    channel, _ = pair
    channel.abort()
    for call in (
        lambda: channel.recv_exactly(1),
        lambda: channel.send([b"x"]),
        lambda: channel.wait_eof(1),
    ):
        with pytest.raises(ChannelAborted):
            call()


def test_close_and_abort_may_be_repeated(pair: Pair) -> None:
    channel, _ = pair
    channel.close()
    channel.close()
    channel.abort()
    assert channel.fileno() == -1


def test_send_to_a_peer_that_is_gone_is_an_error() -> None:
    ours, theirs = _sockets("tcp")
    with Channel(ours) as channel:
        _reset(theirs)
        with pytest.raises(ChannelError):
            for _ in range(100):
                channel.send([bytes(1000)])
