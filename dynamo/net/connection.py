"""One socket: its state, its decoder, its unsent output. Driven by the reactor, and never waits.

    inbound    GREETING -> OPEN                      GREETING -> REFUSED -> CLOSED
    outbound   CONNECTING -> GREETING -> OPEN        any -> CLOSED

Nothing is closed here: a connection only says that it is over (`over`), and the reactor closes it after the batch, since its number could be
given to a new socket within the same batch.
"""

from __future__ import annotations

import socket
from collections import deque

from dynamo.config import join_address
from dynamo.model.messages import ROLE_CLIENT, Message, Source
from dynamo.net.polling import READ, WRITE
from dynamo.wire.frames import FrameDecoder
from dynamo.wire.parts import Parts

RECEIVE_BYTES = 65_536
BULK_AT_ONCE = 4  # frames of large messages, of 1 MiB mostly
ANSWER_BYTES_FIRST = 1024 * 1024  # what an answer is taken to have before there was one


class State:
    """Where a connection is on its way. No Enum: to name one of its members takes 0.2 us, some four times a request."""

    CONNECTING = "connecting"  # dialled, not yet connected
    GREETING = "greeting"  # HELLO or its answer is awaited
    OPEN = "open"
    REFUSED = "refused"  # an ERROR is on its way out; what still comes in is thrown away
    CLOSED = "closed"


class Connection:
    """Bytes in and out of one socket. `number` is never used twice within a process, unlike the file descriptor."""

    __slots__ = (
        "answer_bytes", "backlog", "bulk", "bulk_bytes", "decoder", "descriptor", "held_bytes", "mask", "node_id", "nonce", "number", "outbound",
        "output_bytes", "over", "parts", "paused_at", "received", "role", "sent_bytes", "sock", "source", "state", "taken_seen", "takes_parts", "unanswered",
        "unsent", "waiting_bytes",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, number: int, decoder: FrameDecoder, *, outbound: bool) -> None:
        self.sock = sock
        self.descriptor = sock.fileno()
        self.number = number
        self.decoder = decoder
        self.outbound = outbound
        self.state = State.CONNECTING if outbound else State.GREETING
        self.role = ROLE_CLIENT
        self.source: Source = number  # who messages come from: the number of a client, the node id of a peer
        self.node_id = b""  # of a peer; of an outbound connection to one from the start
        self.nonce = b""  # the peer's boot nonce
        self.mask = 0  # what the poll set watches for
        self.held_bytes = 0  # of an unfinished frame or message, as last accounted for
        self.received = Parts()  # of a message that comes in parts
        self.takes_parts = False  # so does the other side
        self.bulk: deque[bytes] = deque()  # frames of large messages, which let all others pass and go out as the socket takes them
        self.bulk_bytes = 0
        self.parts: list[bytes] = []  # frames to send
        self.unsent: memoryview | None = None  # what the socket did not take; goes before `parts`
        self.output_bytes = 0  # Invariant: the sum of both
        self.sent_bytes = 0  # in all
        self.taken_seen = -1  # of those, by the other side, at the last look whether there is progress; -1: nothing waited then
        self.waiting_bytes = 0  # of those, what was left after the last `flush`, as last accounted for
        self.unanswered = 0  # requests of this client that the replica has and owes an answer
        self.answer_bytes = ANSWER_BYTES_FIRST  # of a large one among the recent answers
        self.backlog: list[Message] = []  # requests received beyond the window; while there are any, no more are read
        self.paused_at = 0.0  # since when there is a backlog
        self.over = ""  # why this connection has to be closed; "" while it lives

    def receive(self) -> bytes | None:
        """What has arrived, up to a bound; None if there was nothing. At the end of the stream, or on an error, the connection is over."""
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:  # not the end of the stream: another batch took it, or the kernel woke us for nothing
            return None
        except OSError as error:
            self.over = self.over or f"receive: {error.strerror}"
            return None
        if not data:
            self.over = self.over or "closed by the other side"
            return None
        return data

    def room(self, output_bytes_max: int) -> int:
        """How many more requests may be given to the replica: so many that answers like the recent ones fit into half of the output allowed."""
        return max(1, output_bytes_max // 2 // self.answer_bytes) - self.unanswered

    def answered(self, frame_bytes: int) -> None:
        """A request got its answer, of this size."""
        self.unanswered -= 1
        self.answer_bytes = max(frame_bytes, self.answer_bytes - (self.answer_bytes >> 3))

    def push(self, frame: bytes) -> None:
        """Queue a frame; `flush` sends it."""
        self.parts.append(frame)
        self.output_bytes += len(frame)

    def push_bulk(self, frames: list[bytes]) -> None:
        """Queue frames behind everything else."""
        self.bulk += frames
        self.bulk_bytes += sum(map(len, frames))

    def feed_bulk(self, waiting_bytes_max: int) -> None:
        """Go on with large messages where little else waits: some of them at a time, so that others have their turn."""
        for _ in range(BULK_AT_ONCE):
            if not self.bulk or self.output_bytes > waiting_bytes_max or self.over:
                break
            frame = self.bulk.popleft()
            self.bulk_bytes -= len(frame)
            self.push(frame)
            self.flush()

    def flush(self) -> None:
        """Send what the socket takes, in as few calls as possible."""
        while self.unsent is not None or self.parts:
            if self.unsent is None:
                self.unsent = memoryview(self.parts[0] if len(self.parts) == 1 else b"".join(self.parts))
                self.parts.clear()
            try:
                sent = self.sock.send(self.unsent)
            except BlockingIOError:
                return
            except OSError as error:
                self.over = self.over or f"send: {error.strerror}"
                return
            self.output_bytes -= sent
            self.sent_bytes += sent
            if sent < len(self.unsent):
                self.unsent = self.unsent[sent:]
                return
            self.unsent = None
        # Invariant: nothing queued, nothing counted.
        assert self.output_bytes == 0

    def wanted(self, draining: bool) -> int:
        """What the poll set should watch for now. Clients with a backlog, and all of them while the node stops, are not read."""
        if self.state is State.CONNECTING:
            return WRITE
        reading = True
        if self.role == ROLE_CLIENT and self.state is State.OPEN:
            reading = not draining and not self.backlog
        return (READ if reading else 0) | (WRITE if self.unsent is not None or self.bulk else 0)

    def far_end(self) -> str:
        """Where the other side is, for people."""
        try:
            name = self.sock.getpeername()
        except OSError:
            return "an address that is gone"
        return join_address(*name[:2])

    def shut_down_output(self) -> None:
        """Tell the other side that no more will come, once what is queued has left."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # already gone; closing it is all that is left
            self.over = self.over or f"shutdown: {error.strerror}"
