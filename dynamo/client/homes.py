"""What an asynchronous client has on one run of one event loop: its connections there, and the calls that wait.

Only the thread of the loop touches it, but for its end, which may come from another loop, another thread, or after the loop or the process is gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from dynamo.client.channel import Channel
from dynamo.client.loops import ENDED, RESTS, RUNS, Event, Loop, running
from dynamo.errors import ConnectionFailed


class Home:
    """`identity` is that of the run, `pid` that of the process it runs in. `hurry` has one entry for each call that waits (see `Loop.until`)."""

    def __init__(self, loop: Loop, identity: Any, pid: int) -> None:
        self.loop = loop
        self.identity = identity
        self.pid = pid
        self.used = False  # whether there was ever a connection
        self.channels: dict[str, Channel] = {}
        self.dialling: dict[str, AbstractAsyncContextManager[object]] = {}
        self.hurry: set[Callable[[], object]] = set()

    def over(self) -> bool:
        """Whether it can be of no more use."""
        return self.pid != os.getpid() or self.loop.standing(self.identity) == ENDED

    def end(self) -> list[Event]:
        """The client was closed: end all that waits, and all connections. Returns what to wait for, if this is the loop that runs here."""
        if not self.over():
            if self._is_here():
                self._end_here()
                return [channel.ended for channel in self.channels.values()]
            if self.loop.standing(self.identity) == RUNS:
                self.loop.tell(self.identity, self._end_here)
                return []
        self.drop()
        return []

    def drop(self) -> None:
        """Give up the connections from wherever this may be: `__del__` runs in any thread. Nobody waits for them."""
        standing = ENDED if self.pid != os.getpid() else self.loop.standing(self.identity)
        for channel in list(self.channels.values()):
            if standing == RUNS:
                channel.wake()
            elif standing == RESTS:
                channel.end_at_rest(self.identity, ConnectionFailed("the client was closed"))
            else:
                channel.abandon()

    def _is_here(self) -> bool:
        try:
            loop = running()
            return loop is self.loop and loop.identity() is self.identity
        except RuntimeError:
            return False

    def _end_here(self) -> None:
        for channel in self.channels.values():
            channel.end(ConnectionFailed("the client was closed"))
        for late in list(self.hurry):
            late()
