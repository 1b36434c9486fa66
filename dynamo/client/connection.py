"""One blocking socket to one node, and the connections that lie idle between requests.

A connection carries one request at a time and greets with HELLO when it opens. One that failed in any way, a time-out included, is
closed and never used again: its late reply would be taken for the answer to the next request.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from dynamo.client.core import Request
from dynamo.client.greeting import Introduction
from dynamo.dialling import race
from dynamo.errors import ConnectionFailed, DynamoError, ProtocolError, Timeout
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.wire import hello
from dynamo.wire.frames import encode
from dynamo.wire.messages import check_answer

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # some green threads leave a patched `select` without poll
_RECEIVE_BYTES = 256 * 1024
IDLE_S_MAX = 30.0
"""What was idle for longer is dialled anew: firewalls and routers forget flows without a word, and a request would find out by its time-out."""


class Connection:
    """A greeted connection to `address`; `cluster_id` is what the node said its cluster is."""

    __slots__ = ("__weakref__", "_decoder", "_request_id", "_socket", "_won", "address", "cluster_id", "pid", "rested_at", "used")

    def __init__(self, address: str, deadline: float, cluster_id: bytes = b"", check: Callable[[], None] | None = None) -> None:
        """Connect and greet; a node of another cluster than `cluster_id`, if given, is refused. `check` is called now and then, to raise when
        nobody wants the connection any more.

        Raises OtherCluster, ConnectionFailed, Timeout, ProtocolError or the node's own refusal; no request was sent then.
        """
        self.address = address
        self.used = False
        self.pid = os.getpid()
        self._request_id = 0
        self._won = won = race.connect(address, Introduction(address, cluster_id), deadline, check)
        self._socket, self._decoder = won.sock, won.decoder
        self.cluster_id = won.said or b""
        race.notice_silence(self._socket)
        self.rested_at = monotonic()

    def exchange(self, request: Request, time_ms: int, deadline: float) -> Message:
        """Send the request and return its reply, an ERROR of the node included.

        Raises ConnectionFailed, Timeout or ProtocolError, whose `maybe_applied` says whether any byte may have been sent. Close it then.
        """
        self._request_id += 1
        frame = encode(request.message(self._request_id, time_ms))
        try:
            self._send(frame, deadline)
            reply = self._receive(deadline)
            self.used = True
            self.rested_at = monotonic()
            if reply[1] != self._request_id:
                raise _broken(reply, self.address)
            check_answer(reply)
        except DynamoError as error:
            error.maybe_applied = True
            raise
        return reply

    def is_stale(self) -> bool:
        """Whether an idle connection was closed by the node, has bytes nobody asked for, or has been idle so long that the way may have gone."""
        if monotonic() - self.rested_at > IDLE_S_MAX:
            return True
        with _Selector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return bool(selector.select(0))

    def wake(self) -> None:
        """End the connection under the thread that waits on it."""
        with suppress(OSError):  # it has ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this process's descriptor. A copy in another process stays open, as nothing is shut down."""
        self._socket.close()

    def __del__(self) -> None:
        with suppress(AttributeError):  # it was never opened
            self._won.sock.close()

    def _send(self, frame: bytes, deadline: float) -> None:
        self._socket.settimeout(_left(self.address, deadline))
        try:
            self._socket.sendall(frame)
        except TimeoutError:
            raise Timeout(f"{self.address} took no more bytes in time") from None
        except OSError as error:
            raise ConnectionFailed(f"{self.address}: {error.strerror or error}") from error

    def _receive(self, deadline: float) -> Message:
        """The next message; there is never more than one under way."""
        while True:
            self._socket.settimeout(_left(self.address, deadline))
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except TimeoutError:
                raise Timeout(f"{self.address} did not answer in time") from None
            except OSError as error:
                raise ConnectionFailed(f"{self.address}: {error.strerror or error}") from error
            if not data:
                raise ConnectionFailed(f"{self.address} closed the connection")
            received = self._decoder.feed(data)
            if len(received) > 1:
                raise ProtocolError(f"{self.address} sent {len(received)} replies to one request")
            if received:
                return received[0]


def _left(address: str, deadline: float) -> float:
    left = deadline - monotonic()
    if left <= 0:
        raise Timeout(f"{address} did not answer in time")
    return left


def _broken(reply: Message, address: str) -> DynamoError:
    """The error of a reply that answers no request of ours: what the node has to say about the connection, or nonsense."""
    if reply[0] == m.ERROR:
        return hello.refusal(reply)
    return ProtocolError(f"{address} answered another request than the one asked")
