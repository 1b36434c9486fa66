"""One connection over a socket pair: what it makes of what the kernel says."""

from __future__ import annotations

import socket
from contextlib import contextmanager

from dynamo.net.connection import Connection, State
from dynamo.wire.frames import FrameDecoder


@contextmanager
def pair():
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        yield Connection(here, 1, FrameDecoder(), outbound=False), there


def test_nothing_there_is_not_the_end():
    with pair() as (connection, other):
        assert connection.receive() is None and not connection.over
        other.send(b"abc")
        assert connection.receive() == b"abc" and not connection.over
        other.close()
        assert connection.receive() is None and connection.over


def test_a_full_socket_keeps_the_rest_in_order():
    with pair() as (connection, other):
        for i in range(200):
            connection.push(b"%06d" % i * 10_000)
        received = b""
        while connection.output_bytes:
            connection.flush()
            assert not connection.over
            assert connection.output_bytes == 200 * 60_000 - len(received) - _unread(other)
            received += other.recv(1 << 20)
        while len(received) < 200 * 60_000:
            received += other.recv(1 << 20)
        assert received == b"".join(b"%06d" % i * 10_000 for i in range(200))


def _unread(sock):
    """Bytes waiting to be received, found by looking without taking."""
    try:
        return len(sock.recv(1 << 24, socket.MSG_PEEK))
    except BlockingIOError:
        return 0


def test_a_broken_connection_says_so_once():
    with pair() as (connection, other):
        other.close()
        connection.push(b"abc")
        connection.flush()
        assert connection.over.startswith("send")


def test_the_window_follows_the_size_of_answers():
    with pair() as (connection, _):
        connection.state = State.OPEN
        bound = 16 << 20
        assert connection.room(bound) == 8  # nothing is known yet: answers of a mebibyte
        for _ in range(100):
            connection.unanswered += 1
            connection.answered(100)
        assert connection.room(bound) > 10_000  # the node's own limit (`admission`) is what counts then
        connection.unanswered = 1000
        connection.answered(4 << 20)  # one large answer, and the window shuts
        assert connection.room(bound) == 2 - 999
        connection.unanswered = 0
        connection.answer_bytes = 1 << 30
        assert connection.room(bound) == 1
