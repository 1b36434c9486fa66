"""The verbs of a node in its own process: requests go to its replica by the same messages as everybody's, without a socket. Trio only.

There is one node to ask, which forwards and coordinates as for any client, so there is nothing to retry.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Protocol

import trio

from dynamo.client import loop_trio
from dynamo.client.core import Request, node_ms
from dynamo.client.window import Window
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
        self._window = Window(loop_trio)  # so many that the node has room for them: who asks for more waits here, in the task that asks

    async def call(self, request: Request, deadline: float) -> Message:
        """The reply to a request. May be cancelled.

        Raises the error it stands for, ValueTooLarge, Timeout, or ConnectionFailed once the node has stopped.
        """
        if request.elsewhere:
            raise Unavailable("this node is the only one that is asked")
        if deadline <= trio.current_time():
            raise Timeout("no time was left to try")
        request_id, done, replies = next(self._ids), trio.Event(), list[Message]()
        size = 0
        if request.writes:
            size = len(encode(request.message(request_id, 1)))  # what fits no frame could not be passed on either: ValueTooLarge, as over a socket
        try:
            with trio.move_on_at(deadline) as entering:
                await self._window.enter(request_id, size)
            if entering.cancelled_caught:
                raise Timeout("no time was left to try")
            self._waiting[request_id] = done, replies
            self._port.send(request.message(request_id, node_ms(max(0.0, deadline - trio.current_time()))))
        except BaseException:
            self._waiting.pop(request_id, None)
            self._window.leave(request_id)
            raise
        try:
            with trio.move_on_at(deadline):
                await done.wait()
        finally:
            self._waiting.pop(request_id, None)
        if not replies:
            raise Timeout("the node did not answer in time", maybe_applied=request.writes)
        reply = replies[0]
        if reply[0] == m.ERROR:
            raise from_wire(*reply[2:7])
        return reply

    def _deliver(self, message: Message) -> None:
        """A reply; one that nobody waits for any more is dropped."""
        self._window.leave(message[1])
        waiting = self._waiting.get(message[1])
        if waiting is not None:
            done, replies = waiting
            replies.append(message)
            done.set()
