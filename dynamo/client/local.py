"""The verbs of a node in its own process: requests go to its replica by the same messages as everybody's, without a socket. Trio only.

There is one node to ask, which forwards and coordinates as for any client, so there is nothing to retry.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Protocol

import trio

from dynamo.client.core import Request, node_ms
from dynamo.errors import Timeout, Unavailable, from_wire
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.wire.frames import encode


class Port(Protocol):
    """See `net.local.LocalPort`."""

    def send(self, message: Message) -> None: ...


class LocalCalls:
    """Requests under way through one port."""

    def __init__(self, open_port: Callable[[Callable[[Message], None]], Port]) -> None:
        self._port = open_port(self._deliver)
        self._ids = count(1)
        self._waiting: dict[int, tuple[trio.Event, list[Message]]] = {}

    async def call(self, request: Request, deadline: float) -> Message:
        """The reply to a request. May be cancelled.

        Raises the error it stands for, ValueTooLarge, Timeout, or ConnectionFailed once the node has stopped.
        """
        if request.elsewhere:
            raise Unavailable("this node is the only one that is asked")
        remaining_s = deadline - trio.current_time()
        if remaining_s <= 0:
            raise Timeout("no time was left to try")
        request_id, done, replies = next(self._ids), trio.Event(), list[Message]()
        message = request.message(request_id, node_ms(remaining_s))
        if request.writes:
            encode(message)  # what fits into no frame could not be passed on to another node: ValueTooLarge, as over a socket
        self._waiting[request_id] = done, replies
        try:
            self._port.send(message)
            with trio.move_on_at(deadline):
                await done.wait()
        finally:
            del self._waiting[request_id]
        if not replies:
            raise Timeout("the node did not answer in time", maybe_applied=request.writes)
        reply = replies[0]
        if reply[0] == m.ERROR:
            raise from_wire(*reply[2:7])
        return reply

    def _deliver(self, message: Message) -> None:
        """A reply; one that nobody waits for any more is dropped."""
        waiting = self._waiting.get(message[1])
        if waiting is not None:
            done, replies = waiting
            replies.append(message)
            done.set()
