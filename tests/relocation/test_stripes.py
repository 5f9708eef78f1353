"""An image over several connections: what is sent on one side comes out on the other."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from xendpy.errors import ChannelAborted, ChannelError, HandshakeError
from xendpy.relocation import stripes
from xendpy.relocation.channel import Channel
from xendpy.relocation.gathering import Gathering
from xendpy.relocation.stripes import MAX_STREAMS, STRIPE, Lane, Stripes

ID = "ab" * 16


@contextmanager
def wires(count: int) -> Iterator[tuple[Stripes, Stripes, list[Channel]]]:
    """Both ends over `count` connections, and the receiving end's channels."""
    with ExitStack() as stack:
        ends: list[tuple[Channel, Channel]] = []
        for _ in range(count):
            pair = socket.socketpair()
            ends.append(tuple(stack.enter_context(Channel(sock)) for sock in pair))
        made = []
        for first, *others in zip(*ends, strict=True):
            lanes = [Lane(channel) for channel in others]
            for lane in lanes:
                lane.start()
            wire = Stripes(first)
            wire.widen(lanes)
            stack.callback(wire.narrow)
            made.append(wire)
        yield made[0], made[1], [end[1] for end in ends]


@contextmanager
def sending(wire: Stripes, *views: bytes) -> Iterator[None]:
    """Send beside what the block does: socket buffers may hold less."""
    thread = threading.Thread(target=wire.send, args=(views,))
    thread.start()
    yield
    thread.join()


def chunks(data: bytes, chance: random.Random) -> Iterator[memoryview]:
    view = memoryview(data)
    while view:
        length = chance.choice((1, 8, 4096, STRIPE - 1, STRIPE, 3 * STRIPE + 5))
        yield view[:length]
        view = view[length:]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_bytes_come_in_order_however_they_are_cut(count: int) -> None:
    data = os.urandom(4 * count * STRIPE + 4321)
    got = bytearray(len(data))
    with wires(count) as (sender, receiver, _):

        def send() -> None:
            for piece in chunks(data, random.Random(1)):
                sender.send([piece[:3], piece[3:]])

        thread = threading.Thread(target=send)
        thread.start()
        for view in chunks(got, random.Random(2)):  # type: ignore[arg-type]  # any buffer
            receiver.recv_into([view[:5], view[5:]])
        thread.join()
    assert got == data


def test_stripes_go_round_the_connections() -> None:
    one, two = bytes([1]) * STRIPE, bytes([2]) * STRIPE
    with wires(2) as (sender, _, (first, second)), sending(sender, one, two, b"3"):
        assert first.recv_exactly(STRIPE + 1) == one + b"3"
        assert second.recv_exactly(STRIPE) == two


def test_one_connection_that_ends_ends_the_image() -> None:
    with wires(3) as (sender, receiver, channels):
        with sending(sender, b"x" * (STRIPE + 1)):
            receiver.recv_exactly(STRIPE)
        sender._lanes[1].channel.close()
        with pytest.raises(ChannelError, match="one of 3 connections was closed"):
            receiver.recv_into([memoryview(bytearray(2 * STRIPE))])
        with pytest.raises(ChannelAborted):
            channels[1].recv_exactly(1)  # which waited for bytes that would not come


def test_cutting_the_first_connection_wakes_who_waits_for_another() -> None:
    with wires(2) as (sender, receiver, channels):
        with sending(sender, b"x" * STRIPE):
            receiver.recv_exactly(STRIPE)
        errors: list[BaseException] = []

        def receive() -> None:
            try:
                receiver.recv_exactly(1)  # which comes on the second
            except ChannelError as error:
                errors.append(error)

        thread = threading.Thread(target=receive)
        thread.start()
        channels[0].abort()
        thread.join()
    assert [type(error) for error in errors] == [ChannelAborted]


def test_once_narrowed_all_goes_over_the_first() -> None:
    with wires(2) as (sender, receiver, channels):
        with sending(sender, b"a" * STRIPE):
            receiver.recv_exactly(STRIPE)
        sender.narrow()
        sender.send([b"b"])
        assert channels[0].recv_exactly(1) == b"b"
        receiver.narrow()
        sender.send([b"c"])
        assert receiver.recv_exactly(1) == b"c"


def test_openings_are_read_back() -> None:
    text = stripes.opening(ID, 3).decode().rstrip()
    assert text == f"(xendpy-stream (id {ID}) (index 3))"
    assert stripes.parse_opening(text) == (ID, 3)


@pytest.mark.parametrize("index", ["0", str(MAX_STREAMS), "-1", "x", ""])
def test_bad_openings_are_refused(index: str) -> None:
    with pytest.raises(HandshakeError, match="with K from 1 to 15"):
        stripes.parse_opening(f"(xendpy-stream (id {ID}) (index {index}))")


def test_a_gathering_takes_each_index_once_and_only_while_open() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Channel(ours, peer="192.0.2.1:700") as channel:
        gathering = Gathering()
        with pytest.raises(HandshakeError, match="takes no further connection"):
            gathering.join(1, channel)
        gathering.open()
        lane = gathering.join(1, channel)
        with pytest.raises(HandshakeError, match="there is a connection 1 already"):
            gathering.join(1, channel)
        with pytest.raises(HandshakeError, match="connection 2 of 2 more has not come"):
            gathering.take(2)
        assert gathering.take(1) == [lane]
        gathering.close()
        lane.run()  # returns: it was ended
