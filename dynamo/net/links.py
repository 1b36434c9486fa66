"""The poll set and every connection in it: adding, watching, sending, cutting off, closing.

Rules that epoll teaches (each found by trying): a descriptor's number is re-used at once, so closing waits for the end of the batch; EPOLLOUT is
watched only while output waits; a descriptor is unregistered before it is closed, since a duplicate in a forked child would keep reporting it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from itertools import count

from dynamo.errors import DynamoError
from dynamo.model.messages import ROLE_PEER, error_message
from dynamo.net.connection import Connection, State
from dynamo.net.limits import Limits
from dynamo.net.polling import READ, WRITE, Poller
from dynamo.net.sockets import untaken_bytes
from dynamo.net.timers import Timers
from dynamo.wire.frames import FrameDecoder, encode
from dynamo.wire.hello import HELLO_BYTES_MAX

_log = logging.getLogger("dynamo.net")

LINGER_S = 1.0  # how long a refused connection may take to read why


class Links:
    """The connections of one reactor, by descriptor while they are in the poll set."""

    def __init__(self, limits: Limits, timers: Timers, poll_set: Poller) -> None:
        self.poll_set = poll_set
        self.by_descriptor: dict[int, Connection] = {}
        self.draining = False
        self.cut_off = 0  # connections closed for reading too slowly, or sending too much at once
        self._limits = limits
        self._timers = timers
        self.numbers = count(1)
        self.resumable: list[Connection] = []  # clients with a backlog that may have room for more of it
        self._dirty: list[Connection] = []  # have frames that were never tried to send
        self._finished: list[Connection] = []
        self._output_total = 0
        self._input_total = 0

    def add(self, sock: socket.socket, *, outbound: bool) -> Connection:
        """Take a tuned socket into the poll set. Raises OSError when the kernel has no room."""
        connection = Connection(sock, next(self.numbers), FrameDecoder(self._limits.frame_bytes_max, greeting_bytes_max=HELLO_BYTES_MAX), outbound=outbound)
        connection.mask = connection.wanted(self.draining)
        self.poll_set.register(connection.descriptor, connection.mask)
        self.by_descriptor[connection.descriptor] = connection
        return connection

    def opened(self, connection: Connection) -> None:
        """The greeting is over."""
        connection.state = State.OPEN
        self.watch(connection)

    def watch(self, connection: Connection) -> None:
        """Watch for what the connection's state asks for."""
        wanted = connection.wanted(self.draining)
        if wanted != connection.mask:
            self.poll_set.modify(connection.descriptor, wanted)
            connection.mask = wanted

    def watch_all(self) -> None:
        """The same for all, after `draining` changed."""
        for connection in self.by_descriptor.values():
            self.watch(connection)

    # --- out ----------------------------------------------------------------------------------------------------------------------

    def push(self, connection: Connection, frame: bytes) -> None:
        """Queue a frame. A connection that lets too much pile up is cut off."""
        if connection.over or connection.state is State.CLOSED:
            return
        if not connection.parts:
            self._dirty.append(connection)
        connection.push(frame)
        if connection.output_bytes > self._limits.output_bytes_max:
            self._send(connection)
            if connection.output_bytes > self._limits.output_bytes_max:
                self._cut_off(connection, "reads too slowly")

    def push_bulk(self, connection: Connection, frames: list[bytes]) -> bool:
        """Queue the frames of a large message behind all else; False, and nothing queued, where as much waits as may."""
        if connection.over or connection.state is State.CLOSED:
            return True  # lost with the connection
        if connection.bulk and connection.bulk_bytes + sum(map(len, frames)) > self._limits.bulk_bytes_max:
            return False
        if not connection.parts:
            self._dirty.append(connection)
        connection.push_bulk(frames)
        return True

    def flush_peers(self) -> None:
        """Send what waits for peers now; the rest goes with the next `flush`."""
        for connection in self._dirty:
            if connection.role == ROLE_PEER and not connection.mask & WRITE and not connection.over:
                self._send(connection)

    def flush(self) -> None:
        """Send everything queued in this step, one buffer per connection."""
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            if not connection.mask & WRITE and not connection.over:
                self._send(connection)

    def _send(self, connection: Connection) -> None:
        """Send what the socket takes, then see to what remains."""
        connection.flush()
        if connection.bulk:
            connection.feed_bulk(self._limits.output_pause_bytes)
        if connection.over:
            self.finish(connection, connection.over)
            return
        waiting = connection.output_bytes
        if connection.state is State.REFUSED and not waiting:
            connection.shut_down_output()
        if waiting != connection.waiting_bytes:
            self._output_total += waiting - connection.waiting_bytes
            connection.waiting_bytes = waiting
            if self._output_total > self._limits.output_total_bytes_max:
                self._cut_off(connection, "too much output waits for readers")
                return
        if connection.backlog and waiting <= self._limits.output_pause_bytes:
            self.resumable.append(connection)
        if waiting or connection.bulk or connection.mask != READ:
            self.watch(connection)

    def writable(self, connection: Connection) -> None:
        """The socket takes more output."""
        self._send(connection)

    def look_for_stalled(self, now: float) -> None:
        """Cut off the clients that took nothing of their output since the last look. Called once, it goes on by itself. (What a peer's silence means is
        for TCP and the replica to say.)"""
        for connection in self.by_descriptor.values():
            if connection.waiting_bytes and connection.role != ROLE_PEER:
                # Not by what our socket took: it says that it has room when a third of it is free, a megabyte, which a slow reader may take minutes for.
                taken = connection.sent_bytes - untaken_bytes(connection.sock)
                if connection.taken_seen == taken:
                    self._cut_off(connection, "has stopped reading")
                connection.taken_seen = taken
            else:
                connection.taken_seen = -1
        self._timers.at(now + self._limits.output_stall_s, self.look_for_stalled)

    # --- in -----------------------------------------------------------------------------------------------------------------------

    def account_input(self, connection: Connection) -> None:
        """Count the unfinished frame of a connection; the one that passes the bound for all of them is cut off."""
        held = connection.decoder.held_bytes + connection.received.held_bytes
        if held == connection.held_bytes:
            return
        self._input_total += held - connection.held_bytes
        connection.held_bytes = held
        if self._input_total > self._limits.input_total_bytes_max:
            self._cut_off(connection, "too many unfinished frames")

    # --- the end of a connection --------------------------------------------------------------------------------------------------

    def refuse(self, connection: Connection, error: DynamoError, now: float) -> None:
        """Say why, then close: once the other side has closed too, or soon. Closing at once could destroy the message on its way."""
        connection.state = State.REFUSED
        self.push(connection, encode(error_message(0, error.code, str(error), False)))
        self._timers.at(now + LINGER_S, lambda _: self.finish(connection, "refused"))

    def _cut_off(self, connection: Connection, reason: str) -> None:
        self.cut_off += 1
        _log.warning("cut off connection %d (%s): %s", connection.number, connection.node_id.hex() or "no node", reason)
        self.finish(connection, reason)

    def finish(self, connection: Connection, reason: str) -> None:
        """Have the connection closed after this batch."""
        if connection.state is not State.CLOSED:
            connection.over = connection.over or reason
            self._finished.append(connection)

    def close_finished(self) -> Iterable[Connection]:
        """Close what is over; yields each closed connection once."""
        while self._finished:
            connection = self._finished.pop()
            if connection.state is not State.CLOSED:
                self._close(connection)
                yield connection

    def _close(self, connection: Connection) -> None:
        connection.state = State.CLOSED
        self._input_total -= connection.held_bytes
        self._output_total -= connection.waiting_bytes
        del self.by_descriptor[connection.descriptor]
        self.poll_set.unregister(connection.descriptor)
        connection.sock.close()
        connection.parts.clear()
        connection.bulk.clear()
        connection.unsent = None
        connection.output_bytes = 0

    def unsent(self) -> bool:
        """Whether output waits for a client to read it."""
        return any(connection.output_bytes and connection.role != ROLE_PEER for connection in self.by_descriptor.values())

    def close_all(self) -> None:
        """Close every connection and the poll set."""
        for connection in list(self.by_descriptor.values()):
            self._close(connection)
        self.poll_set.close()
